# SPDX-License-Identifier: Apache-2.0
"""A head of which a part has come: bounded in size and fields, and each byte looked at once, however it drips."""

import enum
import re

from vllm_gateway.api.errors import ApiError

END = b"\r\n\r\n"
MAX_FIELDS = 256
MAX_BLANK_BYTES = 64
"""Line ends between two requests: some clients send one after a body, and nobody sends many."""
_METHOD = re.compile(rb"[A-Z]{1,20} |[A-Z]{0,20}\Z")
_LONGEST_METHOD = 21
_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([!-~]{1,1000})")


class Fate(enum.Enum):
    MORE = "its end is still to come"
    WHOLE = "its end is there"
    TOO_LARGE = "it is over the limits"
    NO_HEAD = "whatever follows, it is none"


class BegunHead:
    """Of one request; what comes before it, line ends alone, is not part of it."""

    __slots__ = ("_data", "_limit", "since")

    def __init__(self, limit: int, since: float) -> None:
        """`limit` in bytes; `since`: when it began, a time of the loop."""
        self._data = bytearray()
        self._limit = limit
        self.since = since

    def add(self, data: bytes) -> Fate:
        """`data` may hold more than the head."""
        before = len(self._data)
        self._data += data
        if before < _LONGEST_METHOD and _METHOD.match(self._data) is None:
            return Fate.NO_HEAD
        end = self._data.find(END, max(before - len(END) + 1, 0), self._limit)
        if end < 0 and len(self._data) >= self._limit:
            return Fate.TOO_LARGE
        upto = end if end >= 0 else len(self._data)
        if self._data.count(b"\n", before, upto) != self._data.count(b"\r\n", max(before - 1, 0), upto):
            return Fate.NO_HEAD
        if end < 0:
            return Fate.MORE
        return Fate.TOO_LARGE if self._data.count(b"\n", 0, end) > MAX_FIELDS else Fate.WHOLE

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def data(self) -> bytes:
        """All that was added."""
        return bytes(self._data)


class Blanks:
    """Line ends that come alone: each wakes the gateway up, and no time begins with them."""

    __slots__ = ("_count", "_since")

    def __init__(self) -> None:
        self._count = 0
        self._since = 0.0

    def are_too_many(self, more: int, since: float) -> bool:
        """`since`: when the connection began to wait for the present request."""
        if since != self._since:
            self._count, self._since = 0, since
        self._count += more
        return self._count > MAX_BLANK_BYTES


def request_line_of(data: bytes) -> tuple[str, str]:
    """Method and path for the log, as far as they can be told."""
    found = _REQUEST_LINE.match(data)
    return ("UNKNOWN", "/") if found is None else (found[1].decode(), found[2].partition(b"?")[0].decode())


def too_large(limit: int) -> ApiError:
    text = f"The request's head is over {limit >> 10} KiB (server.max_head_kib), or has over {MAX_FIELDS} fields."
    return ApiError("head_too_large", text)


def too_slow(limit_s: float) -> ApiError:
    text = f"The request's head did not come within {limit_s:g} s (server.head_timeout_s)."
    return ApiError("head_timeout", text)


def unreadable(why: str = "it is not HTTP/1.1") -> ApiError:
    return ApiError("bad_request", f"The request cannot be read: {why}.")
