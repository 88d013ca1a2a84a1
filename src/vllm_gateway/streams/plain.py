# SPDX-License-Identifier: Apache-2.0
"""The event that an engine sends for nearly every token: known by its form, and read in one match.

Such events of one stream differ in their text and their ids alone. They begin alike (`PLAIN[kind].begin_of` the first
one tells how) and go on as `PLAIN[kind].rest` says.
"""

import re
from dataclasses import dataclass

from vllm_gateway.streams.asked import Kind

_TEXT = rb'([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)'
_IDS = rb"(\d++(?:,\d++)*+)"
_END = b"]}]}\n\n"


@dataclass(frozen=True, slots=True)
class Plain:
    """The form of plain events."""

    marker: bytes
    """What stands before the text, in every event of a stream at the same place."""
    rest: re.Pattern[bytes]
    """From the text to the event's end: the text as in JSON without its quotes, and the ids with commas between."""
    hidden_rest: bytes
    """What stands after the text where the client has not asked for ids."""

    def begin_of(self, event: bytes) -> bytes | None:
        """What the plain events of this event's stream begin with, up to the text; None if it is of another form."""
        at = event.find(self.marker)
        return event[: at + len(self.marker)] if at >= 0 and event.startswith(b"data: {") else None


def _plain(before_text: bytes, after_text: bytes) -> Plain:
    rest = _TEXT + re.escape(after_text) + _IDS + re.escape(_END)
    return Plain(before_text, re.compile(rest), after_text[:-1] + b"null" + _END[1:])


PLAIN = {
    Kind.CHAT: _plain(
        b'"choices":[{"index":0,"delta":{"content":"',
        b'"},"logprobs":null,"finish_reason":null,"token_ids":[',
    ),
    Kind.COMPLETION: _plain(
        b'"choices":[{"index":0,"text":"',
        b'","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":[',
    ),
}
