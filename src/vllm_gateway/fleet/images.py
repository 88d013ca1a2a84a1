# SPDX-License-Identifier: Apache-2.0
"""Images are there before a GPU is taken: which model needs its image now, and what comes of fetching it."""

from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.board import Board
from vllm_gateway.fleet.models import ModelState, new_failure_id
from vllm_gateway.telemetry import events as log_events

FRESH_S = 60.0  # after that it is looked at again before a start: somebody may have removed it
LINGER_S = 60.0  # how long a pull goes on that nobody wants: who left may come back, and it takes nobody's place


def is_there(board: Board, state: ModelState, now: float) -> bool:
    """Whether an instance can be started from its image; if not, it is fetched from now on."""
    image, wanted = state.image, state.spec.image
    if not wanted:
        return True
    image.wanted_at = now
    came_while_it_was_waited_for = state.waits_since is not None and image.fetched_at >= state.waits_since
    if image.fetched == wanted and (came_while_it_was_waited_for or now - image.fetched_at < FRESH_S):
        return True
    if not image.fetching:
        image.fetching = wanted
        board.effects.append(e.FetchImage(state.spec.name, wanted))
    state.why_fewer = "its image is being fetched"
    return False


def fetched(state: ModelState, name: str, now: float) -> None:
    if state.image.fetching == name:
        state.image.fetching, state.image.fetched, state.image.fetched_at = "", name, now


def let_go_of_others(board: Board) -> None:
    """Of pulls for models that are gone, or have another image now."""
    for state in board.models.values():
        if state.removed or state.image.fetching != state.spec.image:
            _let_go(board, state)


def let_go_of_unwanted(board: Board, now: float) -> None:
    """Once everybody has said what they need."""
    for state in board.models.values():
        if board.activity.waiting(state.spec.name):
            state.image.wanted_at = now
        if now - state.image.wanted_at >= LINGER_S:
            _let_go(board, state)


def _let_go(board: Board, state: ModelState) -> None:
    if state.image.fetching:
        board.effects.append(e.LeaveImage(state.spec.name, state.image.fetching))
        state.image.fetching = ""


def not_fetched(board: Board, state: ModelState, event: e.ImageNotFetched, now: float) -> None:
    """Who waits is told; what runs with earlier settings serves on."""
    if state.image.fetching != event.image:
        return
    name, state.image.fetching = state.spec.name, ""
    state.failure_id, state.told, state.log_tail = new_failure_id(name, now), event.reason, ()
    state.last_error = f"{event.reason}: {event.detail}"
    board.say(
        log_events.IMAGE_PULL_FAILED,
        model=name,
        image=event.image,
        problem=event.detail,
        failure_id=state.failure_id,
    )
    state.failures, state.start_failed = state.failures + 1, True
    board.back_off(state, now)
    if not board.live(name):
        board.refuse_failed(state, f"{name} could not be started", now)
