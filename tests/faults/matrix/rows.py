# SPDX-License-Identifier: Apache-2.0
"""The shapes that rows of the table have: which phases a fault can meet, and why not the others."""

from tests.faults.outcomes import CannotHappen, Promise
from tests.faults.phases import Phase

SOON_REPLACED: dict[str, dict[str, float]] = {"health": {"replace_after_s": 1}}
SOON = {"timeouts": {"connect_s": 2, "idle_s": 2, "client_s": 1.5}}
"""For faults that only a limit ends. Whoever is slow for another reason must not meet one."""
TOO_LATE = CannotHappen("its status has been sent")
ONLY_IN_STREAMS = CannotHappen("nothing is streamed yet")
SAID_ALL = CannotHappen("the engine has said all")
HAS_A_PLACE = CannotHappen("it has its place")
NO_INSTANCE = CannotHappen("there is no instance")


def row(queued: Promise, connecting: Promise, before: Promise, stream: Promise, end: Promise) -> dict[Phase, Promise]:
    return dict(zip(Phase, (queued, connecting, before, stream, end), strict=True))


def always(promise: Promise) -> dict[Phase, Promise]:
    return dict.fromkeys(Phase, promise)


def when_queued(promise: Promise) -> dict[Phase, Promise]:
    return row(promise, HAS_A_PLACE, HAS_A_PLACE, HAS_A_PLACE, HAS_A_PLACE)


def before_the_reply(promise: Promise) -> dict[Phase, Promise]:
    return row(promise, promise, promise, TOO_LATE, TOO_LATE)


def in_the_stream(promise: Promise) -> dict[Phase, Promise]:
    return row(ONLY_IN_STREAMS, ONLY_IN_STREAMS, ONLY_IN_STREAMS, promise, SAID_ALL)


def at_the_start(promise: Promise) -> dict[Phase, Promise]:
    return row(promise, NO_INSTANCE, NO_INSTANCE, NO_INSTANCE, NO_INSTANCE)
