# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: cuts a stream into whole events wherever the reads split, and finds the data of each.

The bytes of an event stay as they came, the blank line at its end included, so that they can be passed on.
"""

import re

MAX_EVENT_BYTES = 64 << 20
"""More than the token ids of a prompt of a few million tokens."""

# A carriage return at the very end may be the first half of a line end.
_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r(?!\Z))")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLong(ValueError):
    """The stream holds an event over the limit."""


class EventReader:
    """Holds back what is not a whole event yet."""

    __slots__ = ("_max_bytes", "held")

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self.held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that these bytes complete. Raises EventTooLong."""
        searched = max(0, len(self.held) - 3)
        if self.held:
            data = self.held + data
        events = []
        start = 0
        if b"\r" not in data:  # as nearly always: three times as fast
            while (at := data.find(b"\n\n", max(searched, start))) >= 0:
                events.append(data[start : at + 2])
                start = at + 2
        else:
            while (end := _END.search(data, max(searched, start))) is not None:
                events.append(data[start : end.end()])
                start = end.end()
        self.held = data[start:]
        if len(self.held) > self._max_bytes:
            raise EventTooLong
        return events


def data_of(event: bytes) -> bytes | None:
    """The data of an event; None if it has none, as a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    lines = []
    for line in _LINE_END.split(event):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None


def event_of(data: bytes) -> bytes:
    """An event of one line of data."""
    assert b"\n" not in data and b"\r" not in data, data
    return b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """What clients skip; it shows them and the proxies between that the stream lives."""
    assert text.isprintable(), text
    return f": {text}\n\n".encode()


DONE = event_of(b"[DONE]")
