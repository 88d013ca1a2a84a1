# SPDX-License-Identifier: Apache-2.0
"""A gate before the lab's Docker engine, by which it goes away and comes back, or fails, while its containers go on."""

import asyncio
import contextlib
import json
import re
from pathlib import Path


class Gate:
    """Stands between the runtime and Docker and can be shut, which is how a Docker engine that restarts looks."""

    def __init__(self, behind: str, path: Path) -> None:
        self._behind = behind
        self._path = str(path)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.failures: dict[str, str] = {}
        """Request lines, as patterns, that are answered 500 with a message instead of being let through."""
        self.holds: str | None = None
        """Request lines, as a pattern, that wait for `goes_on` and are let through then, wanted or not."""
        self.goes_on = asyncio.Event()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def shut(self) -> None:
        assert self._server is not None
        self.goes_on.set()
        self._server.close()
        Path(self._path).unlink(missing_ok=True)
        for writer in list(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_docker, to_docker = await asyncio.open_unix_connection(self._behind.removeprefix("unix://"))
        except OSError:
            writer.close()
            return
        self._writers |= {writer, to_docker}
        await asyncio.gather(self._let_in(reader, to_docker, writer), _copy(from_docker, writer))
        self._writers -= {writer, to_docker}

    async def _let_in(
        self, reader: asyncio.StreamReader, to_docker: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        """A request begins where some bytes begin: the client under test sends none before the last was answered."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                line = data.partition(b"\r\n")[0].decode("latin-1")
                message = next((text for pattern, text in self.failures.items() if re.match(pattern, line)), None)
                if message is not None:
                    back.write(_failure(message))
                    break
                if self.holds is not None and re.match(self.holds, line):
                    await self.goes_on.wait()
                to_docker.write(data)
                await to_docker.drain()
        to_docker.close()


def _failure(message: str) -> bytes:
    body = json.dumps({"message": message}).encode()
    head = f"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
