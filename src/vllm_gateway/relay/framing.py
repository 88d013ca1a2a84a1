# SPDX-License-Identifier: Apache-2.0
"""Finds where a reply's body ends while its bytes pass by: by length, by chunks, or by the connection's end.

`feed` says how many of the bytes belong to the body, and the caller passes them on as they are: nothing is copied but
where the engine says more than the body. Chunk extensions and trailers end here, since nobody has agreed on any. Each
byte that cannot continue a well-formed body raises `BadFraming`, wherever the reads happen to split.
"""

import enum
import re
from typing import Protocol

FIELD_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
FIELD_VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"

_WHOLE_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16}+)\r\n")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16}+)(?:[ \t]*+;" + FIELD_VALUE + rb")?+\r\n")
_SIZE_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{1,16}+(?:[ \t]*+(?:;" + FIELD_VALUE + rb")?+)\r?+")
_TRAILER_LINE = re.compile(rb"(" + FIELD_NAME + rb":" + FIELD_VALUE + rb")?+\r\n")
_TRAILER_LINE_BEGUN = re.compile(rb"(?:" + FIELD_NAME + rb"(?::" + FIELD_VALUE + rb")?+)?+\r?+")

MAX_LINE_BYTES = 4 * 1024
MAX_TRAILER_LINES = 64


class BadFraming(ValueError):
    """The bytes are not a body of the announced form."""


class Framing(Protocol):
    """One body on its way."""

    done: bool
    self_delimiting: bool
    """Whether its end can be told from a connection that broke."""

    instead: bytes | None
    """What is to be passed on in place of the bytes that the last `feed` was given; None: they themselves."""

    def feed(self, data: bytes) -> int:
        """How many of these bytes belong to the body; all of them, unless it ends in them (`done`)."""


class Length:
    """A body of known length; 0 for replies that have none."""

    __slots__ = ("done", "left")
    self_delimiting = True
    instead: bytes | None = None

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    def feed(self, data: bytes) -> int:
        left = self.left
        if len(data) < left:
            self.left = left - len(data)
            return len(data)
        self.left = 0
        self.done = True
        return left


class UntilClose:
    """A body that ends where the connection ends."""

    __slots__ = ("done",)
    self_delimiting = False
    instead: bytes | None = None

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> int:
        return len(data)


class _Part(enum.Enum):
    SIZE = "size line"
    DATA = "chunk data"
    DATA_END = "line end after chunk data"
    TRAILER = "trailer section"


_SIZE, _DATA, _DATA_END, _TRAILER = _Part  # looked up at each read: the class's attributes are slow


class Chunked:
    """A chunked body; what is passed on of it are the chunks alone."""

    __slots__ = ("_cuts", "_line", "_part", "_trailers", "done", "instead", "left")
    self_delimiting = True

    def __init__(self) -> None:
        self.done = False
        self.instead: bytes | None = None
        self._part = _SIZE
        self.left = 0  # bytes of the present chunk's data still to come
        self._line = b""  # the begun line that the last read ended in, not passed on yet
        self._trailers = 0
        self._cuts: list[tuple[int, int]] = []  # what is not passed on of the present read

    @property
    def is_between_chunks(self) -> bool:
        """Whether another chunk may follow what has been passed on."""
        return self._part is _SIZE and not self._line

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        """As in `Framing`; with `payload` the chunks' data is appended to it, free of framing."""
        carried_over = len(self._line)
        if carried_over:
            data = self._line + data
            self._line = b""
        position = 0
        while position < len(data) and not self.done:
            if self._part is _SIZE:
                position = self._whole_chunks(data, position, payload)
                position = self._size_line(data, position)
            elif self._part is _DATA:
                position = self._data(data, position, payload)
            elif self._part is _DATA_END:
                position = self._data_end(data, position)
            else:
                position = self._trailer_line(data, position)
        self.instead = self._rest(data, position) if carried_over or self._line or self._cuts else None
        return position - carried_over

    def _rest(self, data: bytes, end: int) -> bytes:
        """What is left of the data before `end` without what is cut, and without a line that is not whole."""
        kept = []
        start = 0
        for cut, until in self._cuts:
            kept.append(data[start:cut])
            start = until
        self._cuts.clear()
        kept.append(data[start : end - len(self._line)])
        return b"".join(kept)

    @staticmethod
    def _whole_chunks(data: bytes, start: int, payload: list[bytes] | None) -> int:
        """Steps over the chunks that lie in this read as a whole: nearly all, since engines write one at a time."""
        while (line := _WHOLE_SIZE_LINE.match(data, start)) is not None:
            data_start = line.end()
            end = data_start + int(line[1], 16)
            if end == data_start or data[end : end + 2] != b"\r\n":
                break
            if payload is not None:
                payload.append(data[data_start:end])
            start = end + 2
        return start

    def _size_line(self, data: bytes, start: int) -> int:
        if start == len(data):
            return start
        line = _SIZE_LINE.match(data, start)
        if line is None:
            return self._begun_line(_SIZE_LINE_BEGUN, data, start)
        _check_length(line.end() - start)
        if line.end() - line.end(1) > 2:
            self._cuts.append((line.end(1), line.end() - 2))
        self.left = int(line[1], 16)
        self._part = _DATA if self.left else _TRAILER
        return line.end()

    def _data(self, data: bytes, start: int, payload: list[bytes] | None) -> int:
        end = min(start + self.left, len(data))
        self.left -= end - start
        if payload is not None:
            payload.append(data[start:end])
        if self.left == 0:
            self._part = _DATA_END
        return end

    def _data_end(self, data: bytes, start: int) -> int:
        if data.startswith(b"\r\n", start):
            self._part = _SIZE
            return start + 2
        if data[start:] != b"\r":
            raise BadFraming("chunk data does not end where its size says")
        self._line = b"\r"
        return len(data)

    def _trailer_line(self, data: bytes, start: int) -> int:
        line = _TRAILER_LINE.match(data, start)
        if line is None:
            return self._begun_line(_TRAILER_LINE_BEGUN, data, start)
        _check_length(line.end() - start)
        if line[1] is None:
            self.done = True
            return line.end()
        self._trailers += 1
        if self._trailers > MAX_TRAILER_LINES:
            raise BadFraming("too many trailers")
        self._cuts.append((start, line.end()))
        return line.end()

    def _begun_line(self, pattern: re.Pattern[bytes], data: bytes, start: int) -> int:
        """Keeps a line that later bytes may complete; refuses one that no bytes can."""
        line = data[start:]
        _check_length(len(line))
        if pattern.fullmatch(line) is None:
            raise BadFraming(f"malformed {self._part.value}")
        self._line = line
        return len(data)


LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of our own."""
    assert data, "an empty chunk is the last one"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _check_length(length: int) -> None:
    if length > MAX_LINE_BYTES:
        raise BadFraming("line too long in a chunked body")
