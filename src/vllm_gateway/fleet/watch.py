# SPDX-License-Identifier: Apache-2.0
"""Looks at every instance that runs, again and again: whether it passes its health check, and whether its work moves.

Only the supervisor decides what follows. Nothing is asked for each request, and one that is well is told of never.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from vllm_gateway.configuration.settings import Health
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import health
from vllm_gateway.fleet.instance import Instance
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.fleet.sick import LOOKED_AT
from vllm_gateway.fleet.stalls import Stalls
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.routing import Activity

ROUND_S = 0.1
SECOND_LOOK_S = 1.0  # after one that was missed
MOST_LOOKS_PER_S = 50
"""At all instances together: each costs as much as a few requests."""
_LATE_S = 1.0  # a limit that is noticed so late tells of this process, not of the engine
_HEARD_LATE_S = 1.0  # replies that go on are noticed now and then
_OUT_OF_STEP = 0.618  # of the pace, from one newcomer to the next: however many there are, they spread


@dataclass(slots=True)
class _Looks:
    due: float
    under_way: bool = False


class Watch:
    def __init__(
        self,
        registry: ContainerRegistry,
        activity: Activity,
        tasks: Tasks,
        hear: Callable[[e.Event], None],
        *,
        settings: Health,
        mask: Callable[[str], str],
    ) -> None:
        self._registry = registry
        self._activity = activity
        self._tasks = tasks
        self._hear = hear
        self._settings = settings
        self._mask = mask
        self._stalls = Stalls(activity, tasks, hear, settings=settings, mask=mask)
        self._looks: dict[str, _Looks] = {}
        self._newcomers = 0

    def configure(self, settings: Health) -> None:
        self._settings = self._stalls.settings = settings

    def open(self) -> None:
        self._tasks.repeat(self._round, ROUND_S)

    async def _round(self) -> None:
        """Begins the looks that are due; none waits for another."""
        now = _now()
        looked_at = [one for one in self._registry if one.state in LOOKED_AT and one.running and not one.moving]
        for gone in self._looks.keys() - {one.instance_id for one in looked_at}:
            del self._looks[gone]
        self._stalls.keep(self._looks)
        pace_s = max(self._settings.every_s, len(looked_at) / MOST_LOOKS_PER_S)
        for one in looked_at:
            looks = self._looks.get(one.instance_id)
            if looks is None:
                self._newcomers += 1
                first_s = self._newcomers * _OUT_OF_STEP % 1.0 * pace_s
                looks = self._looks[one.instance_id] = _Looks(now + first_s)
            if looks.due <= now and not looks.under_way:
                looks.under_way = True
                self._tasks.spawn(self._look(one, looks, pace_s))

    async def _look(self, one: Instance, looks: _Looks, pace_s: float) -> None:
        began = _now()
        try:
            missed = not one.external and await self._asks_for_health(one, began)
            if not missed:
                await self._stalls.look(one)
            looks.due = max(_now(), began + (min(SECOND_LOOK_S, pace_s) if missed else pace_s))
        finally:
            looks.under_way = False

    async def _asks_for_health(self, one: Instance, began: float) -> bool:
        """Whether it is missed."""
        assert one.running is not None
        limit_s = self._settings.timeout_s
        ailment = await health.ailment(one.running.address, limit_s)
        if ailment is None:
            if one.misses or one.suspect or one.sick is not None:
                self._hear(e.Cleared(one.instance_id))
            return False
        if ailment.silent and _now() - began > limit_s + _LATE_S:
            return False
        heard = self._activity.heard_at(one.instance_id)
        if ailment.silent and heard is not None and heard >= began - _HEARD_LATE_S:
            return False  # busy, and alive
        if one.state in LOOKED_AT and not one.moving:
            self._hear(e.Missed(one.instance_id, self._mask(ailment.why)))
        return True


def _now() -> float:
    return asyncio.get_running_loop().time()
