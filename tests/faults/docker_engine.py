# SPDX-License-Identifier: Apache-2.0
"""The lab's Docker engine as the gateway under test sees it: through a gate that can be shut."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from tests.lab import dockerd
from tests.lab.docker_api import DockerApi, DockerApiError
from tests.lab.gate import Gate
from tests.lab.lab import Lab
from vllm_gateway.fleet.runtimes.docker_spec import socket_of
from vllm_gateway.simulator.gpu_memory import SimulatedGpus

_OWNER = "vllm-gateway.owner"


class DockerEngine:
    """Where the gate is shut the engine's API is away, as after its end; the containers go on."""

    def __init__(self, lab: Lab, socket: Path) -> None:
        self.gate = Gate(lab.docker_host, socket)
        self.gpus = SimulatedGpus(lab.gpu_dir)
        self.environment = {**lab.environment, "DOCKER_HOST": self.gate.url}
        """Of a gateway that is to use it."""
        self._api = DockerApi(lab.place.socket)
        self._place = lab.place
        self._socket = str(lab.place.socket)

    async def open_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.gate.open()

    def break_driver(self, *, init_error: int, error: int) -> None:
        """What NVML answers at its start, and to every call on a GPU; 0: all is well."""
        (self.gpus.directory / "init_error").write_text(str(init_error), encoding="ascii")
        for gpu in self.gpus.gpus():
            self.gpus.update(gpu.index, error=error)

    async def restart(
        self, by: signal.Signals, *, live_restore: bool, meanwhile: Callable[[], Awaitable[object]]
    ) -> None:
        """The real thing: the Docker engine ends and starts anew. `live_restore`: its containers go on."""
        await asyncio.to_thread(dockerd.configure, self._place, live_restore=live_restore)
        await asyncio.to_thread(dockerd.end, self._place, by)
        try:
            await meanwhile()
        finally:
            await asyncio.to_thread(dockerd.launch, self._place)

    def engines(self) -> dict[str, str]:
        """address -> id of every container of a gateway, be it that it does not run."""
        listed = self._api.get("/containers/json", all="true")
        return {socket_of(one) or one["Id"]: one["Id"] for one in listed if _OWNER in one["Labels"]}

    def engine_pids(self) -> dict[str, int]:
        """The same with their pids; it takes a while."""
        found: dict[str, int] = {}
        for address, container in self.engines().items():
            with suppress(DockerApiError):  # it has been removed meanwhile
                found[address] = self.pid_of(container)
        return found

    def pid_of(self, container: str) -> int:
        pid: int = self._api.get(f"/containers/{container}/json")["State"]["Pid"]
        return pid

    async def limit_memory(self, container: str, mib: int) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(self._socket)) as http:
            limits = {"Memory": mib << 20, "MemorySwap": mib << 20}
            async with http.post(f"http://docker/containers/{container}/update", json=limits) as reply:
                assert reply.status == 200, await reply.text()


@asynccontextmanager
async def a_docker_engine(lab: Lab, folder: Path) -> AsyncIterator[DockerEngine]:
    """Its socket is in `folder`. Containers that come within the block are gone after it."""
    with lab.nothing_left():
        engine = DockerEngine(lab, folder / "docker.sock")
        await engine.gate.open()
        try:
            yield engine
        finally:
            await engine.gate.shut()
            await asyncio.to_thread(dockerd.configure, lab.place)
