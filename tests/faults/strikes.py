# SPDX-License-Identifier: Apache-2.0
"""The faults as deeds: each makes one thing go wrong in a scene."""

import signal

from tests.faults.faults import Act
from tests.faults.scene import Scene


def engine_gets(number: signal.Signals) -> Act:
    async def strike(scene: Scene) -> None:
        scene.target.signal(number)

    return strike


def engine_fails_by(fault: str) -> Act:
    """One of the simulated engine's faults."""

    async def strike(scene: Scene) -> None:
        await scene.target.set(fault)

    return strike


async def clients_leave(scene: Scene) -> None:
    for request in scene.requests:
        await request.leave()


async def gateway_is_told_to_end(scene: Scene) -> None:
    scene.gateway.process.terminate()


async def gateway_dies(scene: Scene) -> None:
    """Its engines, which are its children, die with it."""
    scene.gateway.process.kill()
    for engine in scene.engines:
        engine.out_of_reach = True


async def nothing(scene: Scene) -> None:
    """The fault is in the model's settings."""
