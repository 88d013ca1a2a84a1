# SPDX-License-Identifier: Apache-2.0
"""A gate before the lab's Docker engine, by which it goes away and comes back while its containers go on."""

import asyncio
import contextlib
from pathlib import Path


class Gate:
    """Stands between the runtime and Docker and can be shut, which is how a Docker engine that restarts looks."""

    def __init__(self, behind: str, path: Path) -> None:
        self._behind = behind
        self._path = str(path)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        Path(self._path).unlink(missing_ok=True)
        for writer in list(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_docker = await asyncio.open_unix_connection(self._behind.removeprefix("unix://"))
        self._writers |= {writer, to_docker[1]}
        await asyncio.gather(_copy(reader, to_docker[1]), _copy(to_docker[0], writer))
        self._writers -= {writer, to_docker[1]}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
