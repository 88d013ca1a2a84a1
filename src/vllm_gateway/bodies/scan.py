# SPDX-License-Identifier: Apache-2.0
"""Finds where the values of a large JSON text begin and end, and builds none of them.

A parser would build all that a client wants built, and hold up everybody meanwhile. Here a generator does a bit of work
and gives way (`yield`) until it is done; who drives it decides when it goes on (see `turns.py`). Most bytes are passed
over by searches that run in C. It is no validation: what is no JSON deep within a value is the engine's to refuse.
"""

import re
from collections.abc import Generator, Iterator
from typing import TypeAlias, TypeVar

from vllm_gateway.bodies.limits import BodyLimits, Malformed, TooComplex
from vllm_gateway.bodies.payload import Body

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
Span: TypeAlias = tuple[int, int]

SLICE = 32 * 1024
"""So many bytes, or what takes as long, are looked at between two breaks."""
_JUMP = 1 << 20  # as many bytes of a plain text
_WINDOW = 8 * 1024
_STEP = 128  # a call takes as long as so many bytes

_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SPACES = rb"[ \t\r\n]*+"
_SPACE = re.compile(_SPACES)
_NAME_ALONE = re.compile(_TEXT, re.DOTALL)
_NAME = re.compile(rb"(" + _TEXT + rb")" + _SPACES + rb":" + _SPACES, re.DOTALL)
_NEXT = re.compile(_SPACES + rb"(?:," + _SPACES + rb"|(?=[\]}]))")
_PLAIN = re.compile(_TEXT + rb'|[^ \t\r\n,:"\[\]{}]++', re.DOTALL)
_UNBRACKETED = re.compile(rb'(?:[^"\[\]{}]++|' + _TEXT + rb")*+", re.DOTALL)
_ESCAPES = re.compile(rb'(?:\\.[^"\\]*+)*+', re.DOTALL)
_CLOSE = {ord("["): ord("]"), ord("{"): ord("}")}
_QUOTE, _LIST, _OBJECT, _END_OF_LIST, _END_OF_OBJECT = b'"[{]}'
_LONGEST_PLAIN = 4096
_LONGEST_NAME = 4096


class Scanner:
    """A cursor in one text. Its generators leave it behind what they were asked to pass."""

    __slots__ = ("_items", "_limits", "_work", "at", "data")

    def __init__(self, data: Body, limits: BodyLimits) -> None:
        self.data = data
        self.at = 0
        self._limits = limits
        self._items = 0
        self._work = 0  # since the last break

    def members(self) -> Iterator[bytes | None]:
        """The names of the object that begins here, as they are written, the cursor before each value: pass it.

        None: it is time for a break.
        """
        self._open(_OBJECT)
        yield from self.spaces()
        while not self._closes(_END_OF_OBJECT):
            end = self.at + _LONGEST_NAME
            found = _NAME.match(self.data, self.at, end)
            if found is not None and found.end() < end:
                self.at = found.end()
                yield found[1]
            else:
                yield (yield from self._name_among_spaces())
            if not self._next():
                yield from self._next_among_spaces()

    def elements(self) -> Iterator[bool]:
        """The cursor before each element of the list that begins here: pass it. False: it is time for a break."""
        self._open(_LIST)
        for _ in self.spaces():
            yield False
        while not self._closes(_END_OF_LIST):
            yield True
            if not self._next():
                for _ in self._next_among_spaces():
                    yield False

    def value(self) -> Steps[None]:
        """Passes a value."""
        data, at = self.data, self.at
        plain = _PLAIN.match(data, at, at + _LONGEST_PLAIN)
        if plain is not None and (end := plain.end()) < at + _LONGEST_PLAIN:
            self.at = end
            if self.tired(end - at + _STEP):
                yield
        elif at >= len(data):
            raise self._malformed()
        elif data[at] == _QUOTE:
            yield from self._text()
        elif data[at] in _CLOSE:
            yield from self._container()
        else:
            raise self._malformed()

    def commas(self, span: Span) -> Steps[int]:
        """How many there are in it, those in texts too."""
        found = 0
        for begin in range(*span, SLICE):
            found += self.data.count(b",", begin, min(begin + SLICE, span[1]))
            if self.tired(SLICE // 4):
                yield
        return found

    def end(self) -> Steps[None]:
        """Nothing may follow."""
        yield from self.spaces()
        if self.at < len(self.data):
            raise self._malformed()

    # --- Values that are not plain

    def _text(self) -> Steps[None]:
        """From its first quote."""
        data, at, size = self.data, self.at + 1, len(self.data)
        while True:
            stop = min(at + _JUMP, size)
            quote = data.find(b'"', at, stop)
            escape = data.find(b"\\", at, quote if quote >= 0 else stop)
            if escape >= 0:
                passed = _ESCAPES.match(data, escape, escape + SLICE)
                assert passed is not None
                if passed.end() == escape:
                    raise self._malformed()
                work, at = (passed.end() - at) // 2 + (0 if quote >= 0 else SLICE // 2), passed.end()
            elif quote >= 0:
                self.at = quote + 1
                return
            elif stop == size:
                raise self._malformed()
            else:
                work, at = SLICE, stop
            if self.tired(work):
                yield

    def _container(self) -> Steps[None]:
        """From its first bracket, from bracket to bracket: what stands between two of them is passed in one match."""
        data, end = self.data, len(self.data)
        closing = bytearray()  # what closes those that are open
        at = begin = self.at
        window = 0
        while at < end:
            if at >= window:
                window = min(at + _WINDOW, end)
            passed = _UNBRACKETED.match(data, at, window)
            assert passed is not None
            at = passed.end()
            if at - begin > _WINDOW or self._work > SLICE:
                self._work += 8 * (at - begin)
                begin = at
                if self.tired(0):
                    yield
            if at >= window:
                continue
            self._work += _STEP
            byte = data[at]
            at += 1
            if close := _CLOSE.get(byte):
                self._count()
                closing.append(close)
                if len(closing) > self._limits.depth:
                    raise TooComplex("lists and objects within each other", self._limits.depth, "depth")
            elif byte == _QUOTE:  # a text whose end is not in sight
                self.at = at - 1
                self._work += 8 * (at - begin)
                yield from self._text()
                at = begin = self.at
            elif closing.pop() != byte:
                raise Malformed("brackets do not match")
            elif not closing:
                self.at = at
                if self.tired(8 * (at - begin)):
                    yield
                return
        raise self._malformed()

    # --- What stands between values

    def _open(self, bracket: int) -> None:
        if self.at >= len(self.data) or self.data[self.at] != bracket:
            raise self._malformed()
        self.at += 1
        self._count()

    def _closes(self, bracket: int) -> bool:
        """Whether the list or object ends here."""
        if self.at < len(self.data) and self.data[self.at] == bracket:
            self.at += 1
            return True
        return False

    def _next(self) -> bool:
        """Goes on to the next element or member, or to the bracket behind the last one; False: it is not in sight."""
        end = self.at + SLICE
        found = _NEXT.match(self.data, self.at, end)
        if found is None or found.end() == end:
            return False
        self._work += found.end() - self.at
        self.at = found.end()
        return True

    def _next_among_spaces(self) -> Steps[None]:
        yield from self.spaces()
        byte = self.data[self.at : self.at + 1]
        if byte == b",":
            self.at += 1
            yield from self.spaces()
        elif byte not in (b"]", b"}"):
            raise self._malformed()

    def _name_among_spaces(self) -> Steps[bytes]:
        """With more of them before or behind its colon than anybody writes."""
        found = _NAME_ALONE.match(self.data, self.at, self.at + _LONGEST_NAME)
        if found is None:
            raise self._malformed()
        self.at = found.end()
        yield from self.spaces()
        if self.data[self.at : self.at + 1] != b":":
            raise self._malformed()
        self.at += 1
        yield from self.spaces()
        return found[0]

    def spaces(self) -> Steps[None]:
        """Passes them, however many."""
        while True:
            found = _SPACE.match(self.data, self.at, self.at + SLICE)
            assert found is not None
            passed = found.end() - self.at
            self.at = found.end()
            if self.tired(passed):
                yield
            if passed < SLICE:
                return

    def _count(self) -> None:
        self._items += 1
        if self._items > self._limits.items:
            raise TooComplex("lists and objects", self._limits.items, "items")

    def tired(self, work: int = _STEP) -> bool:
        """Whether it is time for a break, after so much work."""
        self._work += work
        if self._work < SLICE:
            return False
        self._work = 0
        return True

    def _malformed(self) -> Malformed:
        return Malformed(f"it is no JSON at byte {self.at}")
