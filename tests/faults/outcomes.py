# SPDX-License-Identifier: Apache-2.0
"""What may be promised to the client of a cell: in words for the page, and as the check that holds it."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.requests import Request, Said
from tests.faults.scene import Scene


@dataclass(frozen=True, slots=True)
class Outcome:
    """`check` raises AssertionError if a request of the scene was not told what is promised."""

    words: str
    check: Callable[[Scene], None]


@dataclass(frozen=True, slots=True)
class CannotHappen:
    why: str


Promise = Outcome | CannotHappen


def answered(words: str) -> Outcome:
    """The whole answer, the same as without the fault: status, text, finish reason, usage, end."""
    return _whole_or(words, lambda said: False, some=False)


def error(code: object, words: str) -> Outcome:
    """That, and where there is another instance whole answers from there; never a connection that breaks."""
    return _whole_or(words, lambda said: _code(said) == code and said.cut is None)


def for_now(code: str, words: str) -> Outcome:
    """That error, and when to come again."""
    return _whole_or(words, lambda said: _code(said) == code and said.retry_after_s >= 1)


def event(code: str, words: str) -> Outcome:
    """That error as the last event of a stream, and no `[DONE]`."""
    return _whole_or(words, lambda said: said.status == 200 and _code(said) == code and not (said.done or said.cut))


def mostly(words: str) -> Outcome:
    """The whole answer; or, as chance will have it, an error with its code. Never a connection that breaks."""
    return _whole_or(words, lambda said: _code(said) is not None and said.cut is None, some=False)


def perhaps(code: str, words: str) -> Outcome:
    """The whole answer, or that error."""
    return _whole_or(words, lambda said: _code(said) == code and said.cut is None, some=False)


def refused(code: str, words: str) -> Outcome:
    """With nothing of a reply: by that error, or because nobody listens any more."""
    return _whole_or(words, lambda said: _code(said) == code or said.status is None, some=False)


def cut(words: str) -> Outcome:
    """A client can tell that it has not got everything."""
    return _whole_or(words, lambda said: said.cut is not None)


def _whole_or(words: str, otherwise: Callable[[Said], bool], *, some: bool = True) -> Outcome:
    """`some`: not every answer may be whole, else nothing was tried."""

    def check(scene: Scene) -> None:
        assert scene.requests
        others = [request for request in scene.requests if not _is_whole(scene, request)]
        for request in others:
            assert otherwise(request.said), f"{request.kind}: {request.said}"
        assert others or not some

    return Outcome(words, check)


def _is_whole(scene: Scene, request: Request) -> bool:
    whole = scene.reference.get(request.kind)
    return whole is not None and request.said.answer == whole.said.answer


def _code(said: Said) -> object:
    return said.error and said.error.get("code")


def _left(scene: Scene) -> None:
    assert all(request.task.cancelled() for request in scene.requests)


def _served(scene: Scene) -> None:
    for request in scene.requests:
        said = request.said
        assert (said.status, said.finish_reason, said.done) == (200, "length", True), f"{request.kind}: {said}"


ANSWERED = answered("answered by the other instance")
CONTINUED = answered("continued by the other instance, the stream is whole")
ANSWERED_LATER = answered("answered by the other instance, after `first_byte_timeout_s`")
ANSWERED_WHEN_SILENT = answered(
    "answered by the other instance, once it has missed two health checks (at latest after `first_byte_timeout_s`)"
)
CONNECTED_LATER = answered("answered by the other instance, after `timeouts.connect_s`")
CONTINUED_LATER = answered("continued by the other instance after `timeouts.idle_s`, the stream is whole")
COMPLETED = answered("completed by the gateway: all was said")
COMPLETED_LATER = answered("completed by the gateway after `timeouts.idle_s`: all was said")
UNDISTURBED = answered("not noticed")
SERVED = Outcome("answered when it is there", _served)
SERVED_AT_LAST = Outcome("answered by the next start, which gets more", _served)
LEFT = Outcome("the engine stops working for it", _left)
CUT = cut("the connection breaks")
CUT_AND_ADOPTED = cut("the connection breaks; the next gateway adopts the engines")
