# SPDX-License-Identifier: Apache-2.0
"""The gateways on which the matrix is played."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from yarl import URL

from tests.faults.docker_engine import DockerEngine, a_docker_engine
from tests.faults.faults import Stage
from tests.faults.footprint import open_files, ports
from tests.faults.stages import in_docker, shared_configuration
from tests.gateway import GatewayProcess, running_gateway
from tests.lab.lab import Lab
from tests.waiting import LIMIT_S


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """At its end no connection to an engine is left: idle ones have been closed."""
    folder: Path = tmp_path_factory.mktemp("faults")
    async with running_gateway(folder, shared_configuration(Stage.SHARED)) as running:
        yield running
        port = URL(running.url).port
        assert port is not None
        async with asyncio.timeout(LIMIT_S):
            while (files := open_files(running.process.pid, port, ports(await running.status())))["engine"]:
                assert not files["stranger"], files
                await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[GatewayProcess, DockerEngine]]:
    """With engines in containers; the test module says of which `STAGE` they are."""
    folder: Path = tmp_path_factory.mktemp("docker")
    config = in_docker(shared_configuration(request.module.STAGE), lab)
    async with (
        a_docker_engine(lab, folder) as docker,
        running_gateway(folder, config, docker.environment) as gateway,
    ):
        yield gateway, docker
