# SPDX-License-Identifier: Apache-2.0
"""Docker itself ends and starts anew: one gateway outlives it, whatever becomes of the containers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.docker_engine import DockerEngine, a_docker_engine
from tests.faults.faults import Fault, Stage, play
from tests.faults.outcomes import Outcome
from tests.faults.phases import Phase
from tests.faults.scene import a_scene
from tests.faults.stages import in_docker, model_name, played, shared_configuration
from tests.gateway import GatewayProcess, running_gateway
from tests.lab.lab import Lab

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
Place = tuple[GatewayProcess, DockerEngine]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder: Path = tmp_path_factory.mktemp("docker")
    config = in_docker(shared_configuration(Stage.DOCKER_RESTARTS), lab)
    async with (
        a_docker_engine(lab, folder) as docker,
        running_gateway(folder, config, docker.environment) as gateway,
    ):
        yield gateway, docker


@pytest.mark.parametrize(("fault", "phase", "outcome"), played(Stage.DOCKER_RESTARTS))
async def test_what_is_promised(place: Place, fault: Fault, phase: Phase, outcome: Outcome) -> None:
    gateway, docker = place
    async with a_scene(gateway, model_name(fault, phase), docker=docker) as scene:
        await play(scene, fault, phase)
        outcome.check(scene)
        await fault.afterwards(scene)
