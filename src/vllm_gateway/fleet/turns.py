# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is where one engine starts at a time: starts that clients wait for go before those nobody waits for."""

from collections.abc import Sequence

from vllm_gateway.fleet.board import Board
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.telemetry import events as log_events

_DOES = {
    State.STARTING: "starts",
    State.WAKING: "wakes",
    State.FALLING_ASLEEP: "falls asleep",
    State.STOPPING: "ends",
    State.FAILED: "is removed",
}


def in_turn(board: Board) -> list[Instance]:
    """The starts and wakes that hold their reservation, in the order in which they may go."""
    return sorted((one for one in board.registry if one.waits_for_room), key=lambda one: not _has_clients(board, one))


def is_next(board: Board, one: Instance) -> bool:
    """Whether nobody goes before it: where clients wait for a start, no other one takes its turn, or its room."""
    return _has_clients(board, one) or not _ahead(board, one)


def make_way(board: Board, now: float) -> None:
    """Ends each start that nobody waits for, where nothing but that holds up one that clients wait for."""
    if board.runtime_away:
        return
    for one in in_turn(board):
        if not _has_clients(board, one) or any(board.activity.in_flight(other_id) for other_id in one.evicts):
            continue
        others = board.changing(one, engines_only=True)
        if not all(board.gives_way(other, now) for other in others):
            continue
        for other in others:
            board.say(log_events.EVICTION, model=other.model, instance=other.name, for_model=one.model, asleep=False)
            board.end_start(other, f"nobody waits for it, and clients wait for {one.model}", now)
            if not board.awake(other.model):
                board.models[other.model].active = False


def waits_for(board: Board, one: Instance) -> str | None:
    """What a start or wake that holds its reservation waits for; None: it does not."""
    if not one.waits_for_room:
        return None
    named = [f"{other.name}, which {_DOES[other.state]}" for other in board.changing(one)]
    leaving = [(other, board.activity.in_flight(other.instance_id)) for other in board.evicted_for(one)]
    named += [f"{other.name}, which finishes {busy} request{'s' * (busy > 1)}" for other, busy in leaving if busy]
    if not _has_clients(board, one):
        named += [f"{other.name}, for which clients wait" for other in _ahead(board, one)]
    return "; ".join(named) or ("memory that has yet to come back" if not board.is_room_free(one) else None)


def _has_clients(board: Board, one: Instance) -> bool:
    return board.activity.waiting(one.model) > 0


def _ahead(board: Board, one: Instance) -> Sequence[Instance]:
    """Those that clients wait for, and that have yet to start on one of its GPUs."""
    there = set(one.gpu_ids)
    return [
        other
        for other in board.registry
        if other is not one and other.waits_for_room and _has_clients(board, other) and there & set(other.gpu_ids)
    ]
