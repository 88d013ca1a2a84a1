# SPDX-License-Identifier: Apache-2.0
"""Brings sleepers to what is decided: who falls asleep now, and who is stopped since the machine's memory is full."""

from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.board import Board
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.sleep import host_mib
from vllm_gateway.telemetry import events as log_events


def keep_to_host_memory(board: Board, now: float) -> None:
    """The least recently used of those who sleep, or are about to, are stopped until the rest fit."""
    resting = [one for one in board.registry if one.resting and not one.moving]
    resting.sort(key=lambda one: (board.activity.waiting(one.model) > 0, board.last_used(one)))
    staying = [one for one in board.registry if one.stuck or not one.leaving]
    too_much = sum(_host_mib(one, board) for one in staying) - board.policy.host_mib
    for one in resting:
        if too_much <= 0:
            return
        too_much -= _host_mib(one, board)
        board.drain(one, "the machine's memory for sleepers is full (host_memory_mib)", now)


def fall_asleep(board: Board, now: float) -> None:
    """Those that are drained, one memory change at a time on a GPU, and into memory that is really there."""
    for one in list(board.registry):
        if one.state is not State.FALLING_ASLEEP or one.moving or board.activity.in_flight(one.instance_id):
            continue
        held = sum(other.host_mib for other in board.registry if other is not one)
        if board.is_quiet(one) and held + _host_mib(one, board) <= board.policy.host_mib:
            one.moving, one.host_mib = True, _host_mib(one, board)
            board.say(log_events.INSTANCE_FALLING_ASLEEP, instance=one.name, model=one.model, reason=one.why)
            board.effects.append(e.Sleep(one.instance_id))


def _host_mib(one: Instance, board: Board) -> int:
    """What it holds, or will: an engine that has slept once keeps its copy's place."""
    if one.host_mib or one.state is not State.FALLING_ASLEEP:
        return one.host_mib
    return host_mib(one, board.models[one.model])
