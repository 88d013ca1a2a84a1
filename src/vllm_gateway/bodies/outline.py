# SPDX-License-Identifier: Apache-2.0
"""A large JSON body in outline: where its fields stand, and the pieces of its prompt in the order that counts."""

from dataclasses import dataclass, field

import msgspec

from vllm_gateway.bodies.limits import BodyLimits, Malformed, TooComplex
from vllm_gateway.bodies.payload import Body
from vllm_gateway.bodies.scan import Scanner, Span, Steps

MOST_PIECES = 4096
"""Of a prompt that are told apart; of what comes behind only the length counts."""
_INDENT = 64
"""Bytes: so far behind a list's bracket its first element is looked for."""
_LISTS = frozenset({"messages", "prompt", "input"})
_IN_MESSAGE = (b'"role"', b'"content"', b'"tool_calls"')


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt: its text, or something else (an image, a sound) that only counts as a whole."""

    span: Span
    is_media: bool = False


@dataclass(slots=True)
class Listed:
    """What is known of a field that may be a list of messages, prompts, inputs or token ids."""

    elements: int = 0
    ids: int = 0
    """Token ids, if that is what it holds itself."""
    pieces: list[Piece] = field(default_factory=list)
    more: int = 0
    """Bytes of what is not among the pieces."""

    def add(self, span: Span, *, is_media: bool = False) -> None:
        if len(self.pieces) < MOST_PIECES:
            self.pieces.append(Piece(span, is_media))
        else:
            self.more += span[1] - span[0]


@dataclass(frozen=True, slots=True)
class Outline:
    """Of each field the last one counts, as in every parser that engines use."""

    body: Body
    spans: dict[str, Span]
    models: list[Span]
    """All values of fields named `model`."""
    lists: dict[str, Listed]

    def raw(self, name: str) -> msgspec.Raw:
        span = self.spans.get(name)
        return msgspec.Raw() if span is None else msgspec.Raw(memoryview(self.body)[slice(*span)])

    def fields(self) -> dict[str, msgspec.Raw]:
        return {name: self.raw(name) for name in self.spans}


def outline(body: Body, limits: BodyLimits) -> Steps[Outline]:
    """Raises Malformed or TooComplex."""
    return (yield from _Reader(body, limits).read())


class _Reader:
    def __init__(self, body: Body, limits: BodyLimits) -> None:
        self._scan = Scanner(body, limits)
        self._limits = limits
        self._found = Outline(body, {}, [], {})
        self._elements = 0
        self._members = 0  # of those elements

    def read(self) -> Steps[Outline]:
        scan, found = self._scan, self._found
        yield from scan.spaces()
        number = 0
        for name in scan.members():
            if name is None:
                yield
                continue
            number += 1
            if number > self._limits.fields:
                raise TooComplex("fields", self._limits.fields, "fields")
            known = _text(name)
            begin = scan.at
            if known in _LISTS and scan.data[begin : begin + 1] == b"[":
                found.lists[known] = listed = Listed()
                yield from self._list(listed, messages=known != "prompt")
            else:
                found.lists.pop(known, None)
                yield from scan.value()
            found.spans[known] = (begin, scan.at)
            if known == "model":
                found.models.append(found.spans[known])
        yield from scan.end()
        return found

    def _list(self, listed: Listed, *, messages: bool) -> Steps[None]:
        scan = self._scan
        begin = scan.at
        if scan.data[begin + 1 : begin + _INDENT].lstrip(b" \t\r\n")[:1].isdigit():
            yield from scan.value()
            listed.ids = 1 + (yield from scan.commas((begin, scan.at)))
        else:
            for is_one in scan.elements():
                if not is_one:
                    yield
                    continue
                listed.elements += 1
                self._count()
                if scan.tired():
                    yield
                if messages and scan.data[scan.at : scan.at + 1] == b"{":
                    yield from self._message(listed)
                else:
                    messages = False  # texts or lists of ids: the list counts as it stands
                    yield from scan.value()
        if listed.ids or not messages:
            listed.pieces = [Piece((begin, scan.at))]

    def _count(self, members: int = 0) -> None:
        limit = self._limits.messages
        self._elements += not members
        self._members += members
        if self._elements > limit:
            raise TooComplex("messages and their parts, prompts or inputs", limit, "messages")
        if self._members > 10 * limit:
            raise TooComplex("fields of messages for each of those that it may have", 10, "messages")

    def _message(self, listed: Listed) -> Steps[None]:
        """In the order in which it counts, whatever the order in which it is written."""
        scan = self._scan
        spans: dict[bytes, Span] = {}
        content: Listed | None = None
        for name in scan.members():
            if name is None:
                yield
                continue
            begin = scan.at
            self._count(members=1)
            if name == b'"content"' and scan.data[begin : begin + 1] == b"[":
                content = Listed()
                yield from self._parts(content)
            else:
                content = None if name == b'"content"' else content
                yield from scan.value()
            if name in _IN_MESSAGE:
                spans[name] = (begin, scan.at)
        for name in _IN_MESSAGE:
            if name == b'"content"' and content is not None:
                for piece in content.pieces:
                    listed.add(piece.span, is_media=piece.is_media)
                listed.more += content.more
            elif name in spans:
                listed.add(spans[name])

    def _parts(self, content: Listed) -> Steps[None]:
        scan = self._scan
        for is_one in scan.elements():
            if not is_one:
                yield
                continue
            begin = scan.at
            self._count()
            if scan.tired():
                yield
            if scan.data[begin : begin + 1] == b"{" and len(content.pieces) < MOST_PIECES:
                text: Span | None = None
                for name in scan.members():
                    if name is None:
                        yield
                        continue
                    inner = scan.at
                    self._count(members=1)
                    yield from scan.value()
                    if name == b'"text"':
                        text = (inner, scan.at)
                content.add(text or (begin, scan.at), is_media=text is None)
            else:
                yield from scan.value()
                content.add((begin, scan.at))


def _text(name: bytes) -> str:
    try:
        return msgspec.json.decode(name, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("a name is no text") from None
