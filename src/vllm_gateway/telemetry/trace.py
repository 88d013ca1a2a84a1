# SPDX-License-Identifier: Apache-2.0
"""Records live requests as hashes and lengths, for `vllm-gateway simulate`. What was said is not in it."""

import json
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO

BLOCK_TOKENS = 128  # of the file, whatever the prompts' own
LARGEST_FILE_BYTES = 256 << 20  # then it becomes FILE.1, and a new one begins
_WAITING_ROWS = 10_000
_WAITING_BLOCKS = 1_000_000  # some 50 MB
_TAIL_BYTES = 2048  # where a reply says its usage
_USAGE = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,9})')
_EVENT = b"data: "


class ReplyLength:
    """Counts the tokens of one reply as its bytes pass by: by the engine's own count, else an event is a token."""

    __slots__ = ("_events", "_tail")

    def __init__(self) -> None:
        self._events = 0
        self._tail = b""

    def watch(self, data: bytes) -> None:
        self._events += data.count(_EVENT)
        self._tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self._tail + data)[-_TAIL_BYTES:]

    @property
    def tokens(self) -> int:
        if counted := _USAGE.findall(self._tail):
            return int(counted[-1])
        return max(0, self._events - 2)  # the role comes first, [DONE] last


@dataclass(frozen=True, slots=True)
class _Row:
    arrived_s: float
    model: str
    prompt_tokens: int
    blocks: Sequence[int]
    block_tokens: int
    reply_tokens: int


class TraceRecorder:
    """One thread writes; what comes faster than it can write is left out. Made by `open`, ended by `close`."""

    def __init__(self, path: Path, now_s: float, failed: Callable[[str], None]) -> None:
        """Raises OSError if the file cannot be written. An old one is kept as FILE.1."""
        self._path = path
        self._began_s = now_s
        self._failed = failed
        self._left_out = 0
        self._put_blocks = 0  # counted where requests end
        self._taken_blocks = 0  # counted where they are written
        self._key = secrets.token_bytes(16)  # nobody can try whether a known prompt is among those recorded
        self._rows: queue.Queue[_Row | None] = queue.Queue(_WAITING_ROWS)
        self._file = self._begin()
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    def record(
        self,
        *,
        arrived_s: float,
        model: str,
        prompt_tokens: int,
        blocks: Sequence[int],
        block_tokens: int,
        reply_tokens: int,
    ) -> None:
        """Never waits."""
        if self._put_blocks - self._taken_blocks > _WAITING_BLOCKS:
            self._left_out += 1
            return
        try:
            self._rows.put_nowait(_Row(arrived_s, model, prompt_tokens, blocks, block_tokens, reply_tokens))
            self._put_blocks += len(blocks)
        except queue.Full:
            self._left_out += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is left, waiting no longer than `timeout_s`."""
        try:
            self._rows.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)
        if self._left_out:
            self._failed(f"{self._left_out} requests came faster than they could be written, and were left out")

    def _begin(self) -> IO[bytes]:
        if self._path.is_file():  # not a device or a pipe
            os.replace(self._path, f"{self._path}.1")
        return open(self._path, "wb", opener=_private)

    def _run(self) -> None:
        try:
            while (row := self._rows.get()) is not None:
                self._taken_blocks += len(row.blocks)
                self._file.write(self._line(row))
                if self._rows.empty():
                    self._file.flush()
                if self._file.tell() >= LARGEST_FILE_BYTES:
                    self._file.close()
                    self._file = self._begin()
            self._file.close()
        except OSError as error:
            self._failed(f"{error}; nothing more is recorded")
            while self._rows.get() is not None:
                pass

    def _line(self, row: _Row) -> bytes:
        fields = {
            "timestamp": round((row.arrived_s - self._began_s) * 1000),
            "model": row.model,
            "input_length": max(1, row.prompt_tokens),
            "output_length": row.reply_tokens,
            "block_tokens": BLOCK_TOKENS,
            "hash_ids": [self._secret(block) for block in regular(row.prompt_tokens, row.blocks, row.block_tokens)],
        }
        return json.dumps(fields).encode() + b"\n"

    def _secret(self, block: int) -> int:
        digest = blake2b(block.to_bytes(16, "little"), digest_size=6, key=self._key).digest()
        return int.from_bytes(digest, "little")  # a number that every JSON reader keeps exact


def _private(path: str, flags: int) -> int:
    """A pipe that nobody reads is refused; one that is read may be slow. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    os.set_blocking(descriptor, True)
    return descriptor


def regular(tokens: int, blocks: Sequence[int], block_tokens: int) -> Iterator[int]:
    """The prompt in blocks of BLOCK_TOKENS: cumulative hashes are as good at any place, so the nearest are taken."""
    for end in range(BLOCK_TOKENS, tokens + 1, BLOCK_TOKENS):
        nearest = max(0, round(end / block_tokens) - 1)
        if nearest >= len(blocks):
            return
        yield blocks[nearest]
