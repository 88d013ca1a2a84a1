# SPDX-License-Identifier: Apache-2.0
"""What may be promised to the client of a cell: in words for the page, and as the check that holds it."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.requests import Request
from tests.faults.scene import Scene


@dataclass(frozen=True, slots=True)
class Outcome:
    """`check` raises AssertionError for a request of the scene that was not told what is promised."""

    words: str
    check: Callable[[Scene, Request], None]


@dataclass(frozen=True, slots=True)
class CannotHappen:
    why: str


@dataclass(frozen=True, slots=True)
class NotYet:
    """A promise that is not kept yet: its test may fail."""

    outcome: Outcome
    why: str


Promise = Outcome | CannotHappen | NotYet


def answered(words: str) -> Outcome:
    """The whole answer, the same as without the fault: status, text, finish reason, usage, end."""

    def check(scene: Scene, request: Request) -> None:
        assert is_whole(scene, request), f"{request.kind}: {request.said}"

    return Outcome(words, check)


def answered_or_refused(code: str, words: str) -> Outcome:
    """Whole, or with nothing of a reply: by that error, or because nobody listens any more."""

    def check(scene: Scene, request: Request) -> None:
        said = request.said
        refused = said.status is None or (said.error is not None and said.error["code"] == code)
        assert refused or is_whole(scene, request), f"{request.kind}: {said}"

    return Outcome(words, check)


def error(code: str, words: str) -> Outcome:
    def check(scene: Scene, request: Request) -> None:
        said = request.said
        assert said.error is not None and said.error["code"] == code, f"{request.kind}: {said}"
        assert said.cut is None, f"{request.kind}: {said}"

    return Outcome(words, check)


def is_whole(scene: Scene, request: Request) -> bool:
    return bool(request.said.answer == scene.reference[request.kind].said.answer)


def _left(scene: Scene, request: Request) -> None:
    assert request.task.cancelled()


def _cut(scene: Scene, request: Request) -> None:
    """A client can tell that it has not got everything."""
    assert request.said.cut is not None or is_whole(scene, request), f"{request.kind}: {request.said}"


ANSWERED = answered("answered by the other instance")
CONTINUED = answered("continued by the other instance, the stream is whole")
UNDISTURBED = answered("not noticed")
LEFT = Outcome("the engine stops working for it", _left)
CUT = Outcome("the connection breaks", _cut)
