# SPDX-License-Identifier: Apache-2.0
"""Docker itself ends and starts anew: a gateway outlives it, whatever becomes of the containers."""

import pytest

from tests.faults.docker_engine import DockerEngine
from tests.faults.faults import Fault, Stage, play
from tests.faults.outcomes import Outcome
from tests.faults.phases import Phase
from tests.faults.scene import a_scene
from tests.faults.stages import model_name, played
from tests.gateway import GatewayProcess

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize(("fault", "phase", "outcome"), played(Stage.DOCKER_RESTARTS))
async def test_what_is_promised(
    place: tuple[GatewayProcess, DockerEngine], fault: Fault, phase: Phase, outcome: Outcome
) -> None:
    gateway, docker = place
    async with a_scene(gateway, model_name(fault, phase), docker=docker) as scene:
        await play(scene, fault, phase)
        outcome.check(scene)
        await fault.afterwards(scene)
