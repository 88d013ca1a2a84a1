# SPDX-License-Identifier: Apache-2.0
"""What prompts have in common, and about how long they are, without a tokenizer: hashes of their bytes in blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from xxhash import xxh3_64_intdigest, xxh3_128_digest

BLOCK_BYTES = 512
MAX_BLOCKS = 2048  # 1 MiB: what lies behind is never seen as cached
BYTES_PER_TOKEN = 4
MEDIA_TOKENS = 1024  # of an image, a sound, a film: what counts is not how many bytes carry it


@dataclass(frozen=True, slots=True)
class Prompt:
    """`blocks`: cumulative hashes, one for each whole block. Two prompts begin alike as far as their `blocks` do."""

    tokens: int
    blocks: tuple[int, ...]
    block_tokens: int


class _Message(msgspec.Struct, gc=False):
    role: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    tool_calls: msgspec.Raw = msgspec.Raw()


class Body(msgspec.Struct):
    """The parts of a request's body that strategies decide by; everything else is skipped, not built."""

    model: msgspec.Raw = msgspec.Raw()  # by the engine's name: an adapter's prefixes are its own
    messages: list[_Message] | None = None
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()  # responses, embeddings
    instructions: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()  # of Anthropic's form of a chat
    tools: msgspec.Raw = msgspec.Raw()
    cache_salt: msgspec.Raw = msgspec.Raw()
    user: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()


class _Part(msgspec.Struct):
    type: str = ""
    text: msgspec.Raw = msgspec.Raw()


_read_body = msgspec.json.Decoder(Body).decode
_read_messages = msgspec.json.Decoder(list[_Message]).decode
_read_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_part = msgspec.json.Decoder(_Part).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_body(body: bytes) -> Body:
    """Never fails: what cannot be read is missing."""
    try:
        return _read_body(body)
    except _UNREADABLE:
        return Body()


def prompt_of(body: Body) -> Prompt:
    """Of a chat, a completion (text or token ids), a response, an embedding."""
    data = b"".join(_bytes_of(body))
    tokens = data.count(b",") + 1 if data[:1] == b"[" and data[1:2].isdigit() else len(data) // BYTES_PER_TOKEN
    key = xxh3_64_intdigest(bytes(body.model) + bytes(body.cache_salt))
    blocks = []
    for start in range(0, min(len(data), MAX_BLOCKS * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        key = xxh3_64_intdigest(data[start : start + BLOCK_BYTES], key)
        blocks.append(key)
    return Prompt(tokens, tuple(blocks), max(1, BLOCK_BYTES * tokens // len(data)) if data else 1)


def _bytes_of(body: Body) -> Iterator[bytes]:
    """The same bytes for the same prompt, and those of an earlier turn as the beginning of a later one's."""
    yield bytes(body.tools)
    yield bytes(body.instructions)
    yield bytes(body.system)
    yield bytes(body.prompt)
    for message in body.messages or _input(body.input):
        content = bytes(message.content)
        yield bytes(message.role)
        if content.startswith(b"["):
            yield from _parts(content)
        else:
            yield content
        yield bytes(message.tool_calls)


def _input(given: msgspec.Raw) -> list[_Message]:
    """Of a response: messages, as in a chat. Of an embedding: texts or token ids."""
    try:
        return _read_messages(given) if given else []
    except _UNREADABLE:
        return [_Message(content=given)]


def _parts(content: bytes) -> Iterator[bytes]:
    """A text as it would be alone; anything else by a hash that is as long as its tokens are many."""
    for part in _read_parts(content):
        try:
            found = _read_part(part)
        except _UNREADABLE:
            found = _Part()
        if found.text:
            yield bytes(found.text)
        else:
            yield xxh3_128_digest(bytes(part)) * (MEDIA_TOKENS * BYTES_PER_TOKEN // 16)
