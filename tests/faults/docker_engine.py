# SPDX-License-Identifier: Apache-2.0
"""The lab's Docker engine as the gateway under test sees it: through a door that can be shut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.lab.docker_api import DockerApi, DockerApiError
from tests.lab.lab import Lab

_OWNER = "vllm-gateway.owner"


class DockerEngine:
    """Where the door is shut the engine's API is away, as after its end; the containers go on."""

    def __init__(self, lab: Lab, door: Path) -> None:
        self._api = DockerApi(lab.place.socket)
        self._socket = str(lab.place.socket)
        self._door = door
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._let_through, self._door)

    async def shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._door.unlink(missing_ok=True)
        for writer in self._passing:
            writer.transport.abort()

    def engine_pids(self) -> dict[int, int]:
        """port -> pid of every container of a gateway; one that does not run has no port."""
        found = {}
        for one in self._api.get("/containers/json", all="true"):
            if _OWNER in one["Labels"]:
                ports = [port["PublicPort"] for port in one["Ports"] if "PublicPort" in port]
                with suppress(DockerApiError):  # it has been removed meanwhile
                    found[ports[0] if ports else 0] = self._inspect(one["Id"])["State"]["Pid"]
        return found

    async def limit_memory(self, container: str, mib: int) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(self._socket)) as http:
            limits = {"Memory": mib << 20, "MemorySwap": mib << 20}
            async with http.post(f"http://docker/containers/{container}/update", json=limits) as reply:
                assert reply.status == 200, await reply.text()

    def _inspect(self, container: str) -> dict[str, Any]:
        inspected: dict[str, Any] = self._api.get(f"/containers/{container}/json")
        return inspected

    async def _let_through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._socket)
        both = {writer, inner_writer}
        self._passing |= both
        try:
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        finally:
            self._passing -= both
            for one in both:
                one.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def a_docker_engine(lab: Lab, folder: Path) -> AsyncIterator[DockerEngine]:
    """The door is `folder`/docker.sock. Containers that come within the block are gone after it."""
    with lab.nothing_left():
        engine = DockerEngine(lab, folder / "docker.sock")
        await engine.open()
        try:
            yield engine
        finally:
            await engine.shut()
