# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: cuts a stream into whole events wherever the reads split, and finds the data of each.

The bytes of an event stay as they came, the blank line at its end included, so that they can be passed on.
"""

import re

MAX_EVENT_BYTES = 8 << 20
"""More than the token ids of a prompt of a million tokens."""

LEAST_EVENT_BYTES = 8
"""Of an event with data that is not empty."""

# A carriage return at the very end may be the first half of a line end.
_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r(?!\Z))")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_LOOKS_BACK = 3  # bytes of an event's end that may have come before its last one


class EventTooLong(ValueError):
    """The stream holds an event over the limit."""


class EventReader:
    """Holds back what is not a whole event yet. Each byte is looked at once, however it comes."""

    __slots__ = ("_max_bytes", "held")

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self.held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The events that these bytes complete. Raises EventTooLong."""
        events: list[bytes] = []
        start = 0
        if self.held:
            before = bytes(self.held[-_LOOKS_BACK:])
            end = _event_end(before + data) - len(before)
            if end < 0:
                self._hold(data)
                return events
            self._hold(data[:end])
            events.append(bytes(self.held))
            self.held = bytearray()
            start = end
        if b"\r" not in data:  # as nearly always: three times as fast
            while (at := data.find(b"\n\n", start)) >= 0:
                events.append(data[start : at + 2])
                start = at + 2
        else:
            while (found := _END.search(data, start)) is not None:
                events.append(data[start : found.end()])
                start = found.end()
        if start < len(data):
            self._hold(data[start:])
        return events

    def _hold(self, data: bytes) -> None:
        if len(self.held) + len(data) > self._max_bytes:
            self.held = bytearray()
            raise EventTooLong
        self.held += data


def _event_end(data: bytes) -> int:
    """Where the first event ends; 0 if it does not."""
    if b"\r" not in data:
        at = data.find(b"\n\n")
        return 0 if at < 0 else at + 2
    found = _END.search(data)
    return 0 if found is None else found.end()


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


def event_of(data: bytes, name: str = "") -> bytes:
    """An event of one line of data."""
    assert b"\n" not in data and b"\r" not in data, data
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + data + b"\n\n"


def comment(text: str) -> bytes:
    """What clients skip; it shows them and the proxies between that the stream lives."""
    assert text.isprintable(), text
    return f": {text}\n\n".encode()


DONE = event_of(b"[DONE]")
