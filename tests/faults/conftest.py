# SPDX-License-Identifier: Apache-2.0
"""The gateways on which the matrix is played: one for all phases of a fault, while these come one after the other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from yarl import URL

from tests.faults.docker_engine import DockerEngine, a_docker_engine
from tests.faults.faults import Fault
from tests.faults.footprint import open_files
from tests.faults.stages import configuration_for, in_docker
from tests.gateway import GatewayProcess, running_gateway
from tests.lab.lab import Lab
from tests.waiting import LIMIT_S


class Houses:
    """Made as they are needed, each in the place of the one before."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._folders = tmp_path_factory
        self._of: Fault | None = None
        self._open = AsyncExitStack()
        self._gateway: GatewayProcess
        self._docker: DockerEngine

    async def with_processes(self, fault: Fault) -> GatewayProcess:
        if self._of is not fault:
            folder = await self._make_room(fault)
            self._gateway = await self._open.enter_async_context(_gateway(folder, fault))
        return self._gateway

    async def with_containers(self, fault: Fault, lab: Lab) -> tuple[GatewayProcess, DockerEngine]:
        if self._of is not fault:
            folder = await self._make_room(fault)
            config = in_docker(configuration_for(fault), lab)
            self._docker = await self._open.enter_async_context(a_docker_engine(lab, folder))
            self._gateway = await self._open.enter_async_context(
                running_gateway(folder, config, self._docker.environment)
            )
        return self._gateway, self._docker

    async def close(self) -> None:
        self._of = None
        await self._open.aclose()

    async def _make_room(self, fault: Fault) -> Path:
        await self.close()
        folder: Path = self._folders.mktemp("house")
        self._of = fault
        return folder


@asynccontextmanager
async def _gateway(folder: Path, fault: Fault) -> AsyncIterator[GatewayProcess]:
    """At its end no connection to an engine is left: idle ones have been closed."""
    async with running_gateway(folder, configuration_for(fault)) as running:
        port = URL(running.url).port
        assert port is not None
        before = open_files(running.process.pid, port)
        yield running
        async with asyncio.timeout(LIMIT_S):
            while (files := open_files(running.process.pid, port))["unix"] > before["unix"]:
                assert not files["stranger"], files
                await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def houses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Houses]:
    made = Houses(tmp_path_factory)
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(houses: Houses, fault: Fault) -> GatewayProcess:
    return await houses.with_processes(fault)


@pytest_asyncio.fixture(loop_scope="module")
async def place(houses: Houses, fault: Fault, lab: Lab) -> tuple[GatewayProcess, DockerEngine]:
    return await houses.with_containers(fault, lab)
