# SPDX-License-Identifier: Apache-2.0
"""The phases of a request, and how requests are brought into each of them and kept there."""

import enum
from dataclasses import dataclass

from tests.faults.requests import KINDS, STREAMS, TOKENS


class Phase(enum.Enum):
    QUEUED = "queued"
    CONNECTING = "connecting"
    BEFORE = "before the first byte"
    STREAM = "in the stream"
    END = "at its end"


@dataclass(frozen=True, slots=True)
class Way:
    """`hold`: the token after which engines hold replies so that requests stay in the phase; None: they do not."""

    hold: int | None
    kinds: tuple[str, ...]


WAYS = {
    Phase.QUEUED: Way(0, tuple(KINDS)),  # every place is taken by requests that are held
    Phase.CONNECTING: Way(None, tuple(KINDS)),
    Phase.BEFORE: Way(0, tuple(KINDS)),
    Phase.STREAM: Way(3, STREAMS),
    Phase.END: Way(TOKENS, STREAMS),  # the last token and its reason are there, the usage and [DONE] are not
}
