# SPDX-License-Identifier: Apache-2.0
"""Brings what runs to a changed configuration: models that are gone leave, changed ones are replaced one by one."""

from collections.abc import Sequence

from vllm_gateway.fleet.board import Board
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import ModelState


def let_go(board: Board, now: float) -> None:
    """Of what the configuration names no more: models, surplus instances, starts with settings that have changed."""
    for state in list(board.models.values()):
        name, spec = state.spec.name, state.spec
        if state.removed and not board.registry.by_model(name):
            del board.models[name]
            continue
        ours = [one for one in board.live(name) if not one.external]
        for one in [one for one in ours if state.removed or not spec.uses_gpu_memory]:
            _end(board, one, "no longer in the configuration", now)
        unused = [one for one in board.live(name) if one.resting or _only_starts(board, one)]
        for one in [one for one in unused if is_outdated(one, state)]:
            _end(board, one, "its settings have changed", now)
        live = [one for one in board.live(name) if not one.external]
        live.sort(key=lambda one: (not one.resting, not is_outdated(one, state), _least_missed(board, one)))
        while len(live) > spec.instances + _is_replacing(live, state):
            _end(board, live.pop(0), "fewer instances are wanted", now)


def outdated(board: Board, state: ModelState) -> list[Instance]:
    """Those that still serve with earlier settings, the least missed first."""
    found = [one for one in board.awake(state.spec.name) if is_outdated(one, state)]
    return sorted(found, key=lambda one: _least_missed(board, one))


def is_outdated(one: Instance, state: ModelState) -> bool:
    return not one.external and one.spec_hash != state.spec.spec_hash


def _is_replacing(live: Sequence[Instance], state: ModelState) -> bool:
    """Then there is one more: a new one takes the place of an old one."""
    return 0 < sum(is_outdated(one, state) for one in live) < len(live)


def may_replace_next(board: Board, state: ModelState, now: float) -> bool:
    """One at a time, and none while the new settings fail to start."""
    those = board.registry.by_model(state.spec.name)
    coming = (State.STARTING, State.WAKING)
    return state.retry_at <= now and not any(one.leaving or one.state in coming for one in those)


def _least_missed(board: Board, one: Instance) -> tuple[bool, bool, bool, float]:
    return (
        one.sick is None,
        one.state is not State.STARTING,
        board.activity.in_flight(one.instance_id) > 0,
        board.last_used(one),
    )


def _only_starts(board: Board, one: Instance) -> bool:
    """To a gateway that hands over it may be ready, and busy, if to this one it still starts."""
    return one.state is State.STARTING and (board.activity.alone or not one.adopted)


def _end(board: Board, one: Instance, why: str, now: float) -> None:
    if one.leaving or one.moving:
        return  # what moves is ended once it has come to rest
    if one.state is State.WAKING:
        board.cancel(one, now)
    if _only_starts(board, one):
        board.end_start(one, why, now)
    else:
        board.drain(one, why, now)
