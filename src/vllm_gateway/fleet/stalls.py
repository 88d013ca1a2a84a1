# SPDX-License-Identifier: Apache-2.0
"""Finds engines that hang although their health check passes: they have requests, and nothing of them moves.

A saturated engine answers late, so silence alone says nothing: its counters do, and at last a small request of our own.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from vllm_gateway.configuration.settings import Health
from vllm_gateway.fleet import engine_metrics
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.engines import vllm_metrics, vllm_trial
from vllm_gateway.fleet.engines.calls import CallFailed, call
from vllm_gateway.fleet.instance import Instance
from vllm_gateway.fleet.sick import WORKING
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.routing import Activity

PATIENCE = 3
"""Times as long may pass before its first answer, since it may be compiling what it needs for that; and if its counters
cannot be read."""

TRIAL_S = 30.0
_LOOKED_INTO = 0.25  # after this part of the limit its counters are read


@dataclass(slots=True)
class _Stall:
    since: float  # it had requests, and nothing has moved from then on
    work: int | None = None  # what its counters said
    next_trial_at: float = 0.0
    on_trial: bool = False


class Stalls:
    def __init__(
        self,
        activity: Activity,
        tasks: Tasks,
        hear: Callable[[e.Event], None],
        *,
        settings: Health,
        mask: Callable[[str], str],
    ) -> None:
        self._activity = activity
        self._tasks = tasks
        self._hear = hear
        self._mask = mask
        self._stalls: dict[str, _Stall] = {}
        self.settings = settings

    def keep(self, instance_ids: Collection[str]) -> None:
        """All others are gone."""
        for gone in self._stalls.keys() - set(instance_ids):
            del self._stalls[gone]

    async def look(self, one: Instance) -> None:
        """At an instance that is looked at now and then. Raises nothing that a sick engine could cause."""
        if one.state not in WORKING or (one.sick is not None and not one.sick.hung):
            self._stalls.pop(one.instance_id, None)
            return
        stall, now = self._stalls.get(one.instance_id), _now()
        if stall is None:
            if self._activity.in_flight(one.instance_id):
                self._stalls[one.instance_id] = _Stall(now)
            return
        limit_s = self.settings.stall_s
        looks_into = now - stall.since >= limit_s * _LOOKED_INTO
        if self._is_heard(one, stall) or (looks_into and await self._has_worked(one, stall)):
            self._moves(one)
            return
        limit_s *= PATIENCE if stall.work is None or self._may_be_compiling(one) else 1
        if _now() - stall.since >= limit_s and _now() >= stall.next_trial_at and not stall.on_trial:
            stall.on_trial = True
            self._tasks.spawn(self._try(one, stall))

    def _may_be_compiling(self, one: Instance) -> bool:
        heard = self._activity.heard_at(one.instance_id)
        return not (one.external or one.adopted) and (heard is None or heard < one.ready_at)

    def _is_heard(self, one: Instance, stall: _Stall) -> bool:
        heard = self._activity.heard_at(one.instance_id)
        return heard is not None and heard > stall.since

    async def _has_worked(self, one: Instance, stall: _Stall) -> bool:
        """Whether its counters have moved since they were read first."""
        before, stall.work = stall.work, await _work(one, self.settings.timeout_s)
        if stall.work is None:
            stall.work = before
        return before is not None and stall.work != before

    def _moves(self, one: Instance) -> None:
        self._stalls.pop(one.instance_id, None)
        if one.sick is not None and one.sick.hung:
            self._hear(e.Works(one.instance_id))

    async def _try(self, one: Instance, stall: _Stall) -> None:
        assert one.running is not None
        limit_s = min(TRIAL_S, self.settings.stall_s)
        stall.next_trial_at = _now() + self.settings.stall_s
        try:
            failure = await vllm_trial.failure(one.running.address, one.model, limit_s)
            moves = failure is None or self._is_heard(one, stall) or await self._has_worked(one, stall)
        except vllm_trial.CannotTell:
            return
        finally:
            stall.on_trial = False
        if self._stalls.get(one.instance_id) is not stall:
            return  # it has moved, or is gone
        if moves:
            self._moves(one)
        elif stall.work is not None or self._activity.alone:  # else another gateway may hear more of it
            count, still_s = self._activity.in_flight(one.instance_id), _now() - stall.since
            why = f"it hangs: nothing moved for {still_s:.0f} s, with {count} requests there; a small one failed too"
            self._hear(e.Hung(one.instance_id, self._mask(f"{why} ({failure})")))


async def _work(one: Instance, limit_s: float) -> int | None:
    """The sum of its counters; None: it does not tell."""
    assert one.running is not None
    try:
        answer = await call(one.running.address, "/metrics", limit_s=limit_s, most_bytes=engine_metrics.MOST_BYTES)
        if answer.status != 200:
            return None
        return (await asyncio.to_thread(vllm_metrics.parse, answer.body, 0.0)).work
    except (CallFailed, ValueError):
        return None


def _now() -> float:
    return asyncio.get_running_loop().time()
