# SPDX-License-Identifier: Apache-2.0
"""Deeds that put an end to waiting: limits of time and of number, for those who come from then on."""

from tests.faults.phases import Phase
from tests.faults.reloads import change
from tests.faults.scene import Scene

_REQUEST_S = 1.5
_SHORT_WAIT_S = 0.3


async def a_request_may_take_so_long(scene: Scene) -> None:
    limits = {"request_s": _REQUEST_S, "idle_s": 60}
    await change(scene, lambda config: config.setdefault("timeouts", {}).update(limits))
    if scene.phase is Phase.QUEUED:
        await scene.more_come()
        await scene.release()


async def a_wait_may_take_so_long(scene: Scene) -> None:
    await change(scene, lambda config: config.update(queue_timeout_s=_SHORT_WAIT_S))
    await scene.more_come()


async def a_client_has_little_patience(scene: Scene) -> None:
    await scene.more_come({"X-Request-Timeout": str(_SHORT_WAIT_S)})


async def the_queue_is_full(scene: Scene) -> None:
    await change(scene, lambda config: config.update(queue_size=len(scene.requests)))
    await scene.more_come()


async def those_before_were_served(scene: Scene) -> None:
    assert all(request.said.status == 200 for request in scene.blockers)
    await scene.nothing_left()
