# SPDX-License-Identifier: Apache-2.0
"""Faults of Docker and of containers: a gateway outlives them in all phases."""

from pathlib import Path

import pytest

from tests.faults.docker_engine import DockerEngine, a_docker_engine
from tests.faults.faults import Fault, Stage, play
from tests.faults.outcomes import Outcome
from tests.faults.phases import Phase
from tests.faults.scene import a_scene
from tests.faults.stages import (
    configuration,
    in_docker,
    model,
    model_name,
    played,
)
from tests.gateway import GatewayProcess, running_gateway
from tests.lab.lab import Lab

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize(("fault", "phase", "outcome"), played(Stage.DOCKER_ALONE))
async def test_the_next_gateway_takes_over(
    lab: Lab, tmp_path: Path, fault: Fault, phase: Phase, outcome: Outcome
) -> None:
    """What the last one left running serves on, and nothing else is left."""
    config = in_docker(configuration({"m": model(fault)}), lab)
    async with a_docker_engine(lab, tmp_path) as docker:
        async with (
            running_gateway(tmp_path, config, docker.environment, may_be_killed=True) as gateway,
            a_scene(gateway, "m", docker=docker) as scene,
        ):
            await play(scene, fault, phase)
            outcome.check(scene)
            await fault.afterwards(scene)
        before = docker.engine_pids()
        async with (
            running_gateway(tmp_path, config, docker.environment) as following,
            a_scene(following, "m", docker=docker),
        ):
            assert len(following.events("instance_adopted")) == 2
        assert docker.engine_pids() == before


@pytest.mark.parametrize(("fault", "phase", "outcome"), played(Stage.DOCKER))
async def test_what_is_promised(
    place: tuple[GatewayProcess, DockerEngine], fault: Fault, phase: Phase, outcome: Outcome
) -> None:
    gateway, docker = place
    async with a_scene(
        gateway, model_name(fault, phase), instances=fault.instances, kinds=fault.kinds, docker=docker
    ) as scene:
        await play(scene, fault, phase)
        outcome.check(scene)
        await fault.afterwards(scene)
