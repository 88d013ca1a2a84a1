# SPDX-License-Identifier: Apache-2.0
"""What prompts have in common, and about how long they are, without a tokenizer: hashes of their bytes in blocks.

Only what is hashed is looked at: the first MAX_BLOCKS, and of no more than MOST_PIECES pieces.
"""

from dataclasses import dataclass

import msgspec
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from vllm_gateway.bodies.outline import MOST_PIECES, Listed, Outline

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
_HASHED = MAX_BLOCKS * BLOCK_BYTES
_LONGEST_SALT = 1024
_MEDIA_BYTES = MEDIA_TOKENS * BYTES_PER_TOKEN
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_body(body: bytes | bytearray) -> Body:
    """Never fails: what cannot be read is missing."""
    try:
        return _read_body(body)
    except _UNREADABLE:
        return Body()


def body_of(outline: Outline) -> Body:
    """Of a large body; its messages are in its outline."""
    body = Body()
    for name in Body.__struct_fields__:
        if name != "messages":
            setattr(body, name, outline.raw(name))
    return body


def prompt_of(body: Body, outline: Outline | None = None) -> Prompt:
    """Of a chat, a completion (text or token ids), a response, an embedding. `outline`: of a large body.

    The same bytes count for the same prompt, and those of an earlier turn as the beginning of a later one's.
    """
    gathered = _Gathered()
    for field in (body.tools, body.instructions, body.system, body.prompt):
        gathered.text(field)
    if outline is None:
        gathered.messages(body.messages or gathered.input(body.input))
    else:
        gathered.outlined(body, outline)
    return gathered.prompt(bytes(body.model) + memoryview(body.cache_salt)[:_LONGEST_SALT])


class _Gathered:
    """The bytes that count, as far as they are hashed, and how many there are in all."""

    __slots__ = ("_data", "_ids", "_length", "_pieces")

    def __init__(self) -> None:
        self._data = bytearray()
        self._length = 0
        self._pieces = 0
        self._ids = 0  # where they are counted already

    def text(self, piece: msgspec.Raw | memoryview) -> None:
        view = memoryview(piece)
        self._length += view.nbytes
        if (room := _HASHED - len(self._data)) > 0:
            self._data += view[:room]

    def media(self, piece: msgspec.Raw | memoryview) -> None:
        """By a hash that is as long as its tokens are many."""
        self._length += _MEDIA_BYTES
        if len(self._data) < _HASHED:
            self._data += xxh3_128_digest(memoryview(piece)) * (_MEDIA_BYTES // 16)

    def input(self, given: msgspec.Raw) -> list[_Message]:
        """Of a response: messages, as in a chat. Of an embedding: texts or token ids."""
        try:
            return _read_messages(given) if given else []
        except _UNREADABLE:
            self.text(given)
            return []

    def messages(self, messages: list[_Message]) -> None:
        for message in messages[:MOST_PIECES]:
            self.text(message.role)
            content = message.content
            if _first(content) == b"[":
                self._parts(content)
            else:
                self.text(content)
            self.text(message.tool_calls)

    def _parts(self, content: msgspec.Raw) -> None:
        """A text as it would be alone."""
        if self._pieces >= MOST_PIECES:
            self._length += memoryview(content).nbytes
            return
        parts = _read_parts(content)
        self._pieces += len(parts)
        for part in parts[:MOST_PIECES]:
            if _first(part) != b"{":
                self.text(part)
                continue
            try:
                text = _read_part(part).text
            except _UNREADABLE:
                text = msgspec.Raw()
            if text:
                self.text(text)
            else:
                self.media(part)

    def outlined(self, body: Body, outline: Outline) -> None:
        lists = outline.lists
        listed = lists.get("messages")
        if listed is None or not listed.elements:
            listed = lists.get("input")
        if listed is None:
            self.text(body.input)
            listed = lists.get("prompt", Listed())
            self._ids = listed.ids
            return
        view = memoryview(outline.body)
        for piece in listed.pieces:
            (self.media if piece.is_media else self.text)(view[slice(*piece.span)])
        self._length += listed.more
        self._ids = listed.ids

    def prompt(self, salt: bytes) -> Prompt:
        data, length = self._data, self._length
        if data[:1] == b"[" and data[1:2].isdigit():
            tokens = self._ids or data.count(b",") + 1
        else:
            tokens = length // BYTES_PER_TOKEN
        key = xxh3_64_intdigest(salt)
        blocks = []
        for start in range(0, min(len(data), _HASHED) - BLOCK_BYTES + 1, BLOCK_BYTES):
            key = xxh3_64_intdigest(data[start : start + BLOCK_BYTES], key)
            blocks.append(key)
        return Prompt(tokens, tuple(blocks), max(1, BLOCK_BYTES * tokens // length) if length else 1)


def _first(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])
