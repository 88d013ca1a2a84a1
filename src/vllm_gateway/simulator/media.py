# SPDX-License-Identifier: Apache-2.0
"""What is neither chat nor text completion: embeddings and transcriptions, made up from their input."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence

from vllm_gateway.simulator.tokenizer import Continuation, decode

DIMENSIONS = 64


def embedding(ids: Sequence[int], *, as_base64: bool) -> list[float] | str:
    """A unit vector that depends on the input alone; as float32 in base64 if asked for, as the OpenAI SDK does."""
    continuation = Continuation(ids)
    raw = [continuation.next_ignoring_end() % 997 / 997 - 0.5 for _ in range(DIMENSIONS)]
    norm = math.sqrt(sum(value * value for value in raw))
    vector = [value / norm for value in raw]
    if as_base64:
        return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode("ascii")
    return vector


def transcription(audio: bytes) -> tuple[str, int]:
    """(text, seconds): one second for each 32 kB, three words a second, made from the sound's bytes."""
    seconds = max(1, math.ceil(len(audio) / 32000))
    continuation = Continuation(list(audio[:4096]) or [0])
    words = [continuation.next_ignoring_end() for _ in range(min(300, seconds * 3))]
    return decode(words).strip(), seconds


def multipart_fields(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts of a form by their names; empty if this is no form."""
    marker = content_type.partition("boundary=")[2].strip().strip('"').encode("latin-1", "replace")
    if not content_type.startswith("multipart/form-data") or not marker:
        return {}
    fields = {}
    for part in body.split(b"--" + marker)[1:-1]:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode("utf-8", "replace")
        fields[name] = value.removesuffix(b"\r\n")
    return fields
