# SPDX-License-Identifier: Apache-2.0
"""Who runs and does not answer, or does not work: out of routing at once, replaced only when that is sure to help."""

from collections.abc import Sequence
from dataclasses import replace

from vllm_gateway.fleet.board import Board
from vllm_gateway.fleet.instance import Instance, Sickness, State
from vllm_gateway.fleet.models import ModelState
from vllm_gateway.telemetry import events as log_events

MISSES = 2
"""Health checks in a row that count."""

LOOKED_AT = frozenset({State.READY, State.SLEEPING, State.DRAINING, State.FALLING_ASLEEP})
WORKING = LOOKED_AT - {State.SLEEPING}
_ENDING = frozenset({State.STOPPING, State.FAILED})


def missed(board: Board, one: Instance, why: str, now: float) -> None:
    """A health check brought nothing."""
    if one.sick is not None or not (one.state in LOOKED_AT or (one.state is State.STARTING and one.adopted)):
        return
    one.misses += 1
    if one.misses >= MISSES:
        _fall_sick(board, one, Sickness(why, since=now, counted_from=now))


def hung(board: Board, one: Instance, why: str, now: float) -> None:
    if one.sick is None and one.state in WORKING:
        _fall_sick(board, one, Sickness(why, since=now, counted_from=now, hung=True))


def answers(board: Board, one: Instance, now: float) -> None:
    """Its health check has passed; that says nothing of its work."""
    one.misses = 0
    if one.suspect:
        board.registry.set_suspect(one, False)
    if one.sick is not None and not one.sick.hung:
        _recover(board, one, now)


def works(board: Board, one: Instance, now: float) -> None:
    if one.sick is not None and one.sick.hung:
        _recover(board, one, now)


def _fall_sick(board: Board, one: Instance, sickness: Sickness) -> None:
    board.registry.set_sick(one, sickness)
    board.say(log_events.INSTANCE_SICK, instance=one.name, model=one.model, reason=sickness.why, hung=sickness.hung)


def _recover(board: Board, one: Instance, now: float) -> None:
    assert one.sick is not None
    seconds = round(now - one.sick.since, 1)
    board.registry.set_sick(one, None)
    board.models[one.model].used_at = now
    board.say(log_events.INSTANCE_WELL, instance=one.name, model=one.model, seconds=seconds)


def to_be_ended(board: Board, limit_s: float, now: float) -> list[Instance]:
    """Those whose time is up: what leaves or sleeps anyway, and one of each model that serves, if that may be."""
    found: list[Instance] = []
    for state in board.models.values():
        patients = [one for one in board.registry.by_model(state.spec.name) if one.sick is not None]
        if not patients:
            state.why_sick_stay, state.looks_sick, state.ends_sick = None, False, False
            continue
        ours = [one for one in patients if not (one.external or one.moving or one.state in _ENDING)]
        if board.runtime_away:
            _count_anew(ours, now)  # the way to them may be away with it
            continue
        due = [one for one in ours if _left_s(board, one, limit_s, now) <= 0]
        found += [one for one in due if not _serves(one)]
        due = [one for one in due if _serves(one)]
        _judge(board, state, now)
        if due and state.why_sick_stay is None:
            found.append(min(due, key=_since))
    return found


def _count_anew(patients: Sequence[Instance], now: float) -> None:
    for one in patients:
        assert one.sick is not None
        one.sick = replace(one.sick, counted_from=now)


def _judge(board: Board, state: ModelState, now: float) -> None:
    """Why none of the model's sick ones is replaced now, if that is so."""
    those = board.registry.by_model(state.spec.name)
    serving = [one for one in those if _serves(one) and not one.external]
    sick = sum(one.sick is not None for one in serving)
    why = None
    was_sick, state.looks_sick = state.looks_sick, len(serving) > 1 and 2 * sick > len(serving)
    if state.looks_sick and not state.ends_sick:
        why = (
            f"{sick} of {len(serving)} instances look sick: it may be the gateway or its machine, and none is replaced"
        )
        if not was_sick:
            board.say(log_events.MODEL_LOOKS_SICK, model=state.spec.name, sick=sick, instances=len(serving))
    elif any(_comes_or_goes(one) for one in those):
        why = "another instance is being replaced"
    elif state.retry_at > now:
        why = f"the last start failed, and the next one may come in {state.retry_at - now:.0f} s"
    state.why_sick_stay = why


def _serves(one: Instance) -> bool:
    """Or did, for an earlier gateway."""
    return one.state is State.READY or (one.state is State.STARTING and one.sick is not None)


def _comes_or_goes(one: Instance) -> bool:
    starts = one.state in (State.STARTING, State.WAKING) and one.sick is None
    return starts or (one.state in _ENDING and not one.stuck)


def _left_s(board: Board, one: Instance, limit_s: float, now: float) -> float:
    """Until its time is up. Whoever's replies move is alive, whatever its health check says."""
    assert one.sick is not None
    if one.sick.hung:
        return 0.0
    heard = board.activity.heard_at(one.instance_id) or 0.0
    return max(one.sick.counted_from, heard) + limit_s - now


def _since(one: Instance) -> float:
    assert one.sick is not None
    return one.sick.since


def outlook(board: Board, one: Instance, limit_s: float, now: float) -> str | None:
    """What is wrong with it, and what comes next."""
    sickness = one.sick
    if sickness is None:
        return "it failed a request, and its health check is awaited" if one.suspect else None
    left_s = _left_s(board, one, limit_s, now)
    unless = "works" if sickness.hung else "answers"
    if one.external:
        then = f"it gets requests again once it {unless}"
    elif board.runtime_away:
        then = "the runtime does not answer, so it cannot be replaced"
    elif left_s > 0:
        then = f"it is replaced in {left_s:.0f} s unless it {unless}"
    else:
        stays = board.models[one.model].why_sick_stay if _serves(one) else None
        then = f"not replaced yet: {stays}" if stays else "it is about to be ended"
    return f"{sickness.why}, {now - sickness.since:.0f} s ago; {then}"
