# SPDX-License-Identifier: Apache-2.0
"""Events that are too large to be parsed while others wait: their prompt's ids are cut out, and the rest is searched.

A prompt's ids come with the first event of a stream, and are most of it. Whatever else is large is looked through for
what a stream cannot do without: a failure, and the end of a choice.
"""

import re
from dataclasses import dataclass

LARGE_EVENT_BYTES = 64 * 1024

_PROMPT_IDS = b'"prompt_token_ids"'
_LIST_BEGINS = re.compile(rb"\s*+:\s*+\[")
_VALUE = re.compile(rb"\s*+:\s*+(null\b|\S)")
_DIGITS = b"0123456789, \n\r\t"
_MOST_NAMES = 1000  # of a kind; more than any engine puts into an event


@dataclass(frozen=True, slots=True)
class Glance:
    """What an event says that was not parsed."""

    failed: bool
    finished: int
    """Choices with a finish reason."""
    has_ids: bool


def without_prompt_ids(event: bytes) -> tuple[bytes, bytes | None]:
    """The event with null in their place, and the first list of a prompt's ids; None if there is none.

    >>> without_prompt_ids(b'data: {"id":"1","prompt_token_ids":[1,2]}')
    (b'data: {"id":"1","prompt_token_ids":null}', b'[1,2]')
    """
    at = _name(event, _PROMPT_IDS)
    begins = _LIST_BEGINS.match(event, at + len(_PROMPT_IDS)) if at >= 0 else None
    if begins is None:
        return event, None
    start = begins.end() - 1
    end = event.find(b"]", start) + 1
    ids = event[start:end]
    if not end or ids.translate(None, _DIGITS) != b"[]" or len(ids) == 2:
        return event, None
    return event[:start] + b"null" + event[end:], ids


def glance(event: bytes) -> Glance | None:
    """None: it cannot be read so either."""
    errors, reasons = _values(event, b'"error"'), _values(event, b'"finish_reason"')
    if errors is None or reasons is None:
        return None
    failed = any(value != b"null" for value in errors)
    return Glance(failed, sum(value == b'"' for value in reasons), b'token_ids":[' in event)


def _values(event: bytes, name: bytes) -> list[bytes] | None:
    """What stands behind each of these names: null, or the first byte of something else. None: too many."""
    found = []
    at = _name(event, name)
    while at >= 0:
        value = _VALUE.match(event, at + len(name))
        if value is not None:
            found.append(value[1])
        if len(found) > _MOST_NAMES:
            return None
        at = _name(event, name, at + 1)
    return found


def _name(event: bytes, name: bytes, start: int = 0) -> int:
    """Where it stands next; within a text its quotes have backslashes before them."""
    at = event.find(name, start)
    while at > 0 and event[at - 1 : at] == b"\\":
        at = event.find(name, at + 1)
    return at
