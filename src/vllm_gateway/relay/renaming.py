# SPDX-License-Identifier: Apache-2.0
"""Puts the name by which a client knows a model in the place of the one that its engine says.

What JSON says of a text, or of a tool's arguments, has its quotes escaped: the name is found where it is a value, and
nowhere in what a model has written.
"""

from dataclasses import dataclass, field

import msgspec

_FIELD = b'"model":'
_LINE_END = ord("\n")


@dataclass(frozen=True, slots=True)
class Rename:
    """What the engine calls it, and what the client."""

    was: str
    now: str


@dataclass(slots=True)
class Renaming:
    """Of one body: JSON, or events with JSON in them. What may be the begin of a name is held until there is more."""

    _was: bytes
    _now: bytes
    _was_spaced: bytes
    _held: bytes = field(default=b"", init=False)

    @classmethod
    def of(cls, rename: Rename) -> "Renaming":
        """
        >>> Renaming.of(Rename("m", "alias")).feed(b'{"model": "m"}')
        b'{"model":"alias"}'
        """
        was, now = msgspec.json.encode(rename.was), msgspec.json.encode(rename.now)
        return cls(_FIELD + was, _FIELD + now, _FIELD + b" " + was)

    def feed(self, data: bytes) -> bytes:
        if self._held:
            data, self._held = self._held + data, b""
        data = data.replace(self._was, self._now).replace(self._was_spaced, self._now)
        if data and data[-1] != _LINE_END:  # events end with one, and no name has one
            at = self._begun(data)
            data, self._held = data[:at], data[at:]
        return data

    def rest(self) -> bytes:
        """At the end of the body."""
        rest, self._held = self._held, b""
        return rest

    def _begun(self, data: bytes) -> int:
        """Where the field begins of which only the begin is there."""
        at = max(0, len(data) - len(self._was))
        while (at := data.find(b'"', at)) >= 0:
            if self._was.startswith(data[at:].replace(b": ", b":", 1)):
                return at
            at += 1
        return len(data)
