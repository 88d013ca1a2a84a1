# SPDX-License-Identifier: Apache-2.0
"""Reads along what a container writes, from its first line, also over a restart of the Docker engine."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime

import aiodocker

from vllm_gateway.fleet.runtimes.docker_client import NO_DOCKER, up_to
from vllm_gateway.fleet.runtimes.output import MOST_LINES

_HEAD_BYTES = 8  # which stream it is, and how long the piece
_MOST_BYTES = 1 << 20
_CANNOT_BE_READ = "does not support reading"
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z ")


class NotReadable(Exception):
    """Docker's logging driver keeps nothing that could be read."""


class ContainerLog:
    """Each piece is told once: of what comes a second time, after a gap, Docker's own times tell."""

    def __init__(self, container: str) -> None:
        self._path = f"containers/{container}/logs"
        self._seen = b""  # the time of the last piece

    async def pieces(self, client: aiodocker.Docker) -> AsyncIterator[bytes]:
        """All that has not been told, and what comes, until the container or the connection ends.

        Raises NotReadable, DockerError, aiohttp.ClientError, TimeoutError.
        """
        params = {"follow": "1", "stdout": "1", "stderr": "1", "timestamps": "1", "tail": str(MOST_LINES)}
        if self._seen:
            params |= {"since": _epoch(self._seen), "tail": "all"}
        try:
            async with client._query(self._path, params=params, timeout=up_to(None)) as reply:
                while True:
                    head = await reply.content.readexactly(_HEAD_BYTES)
                    length = int.from_bytes(head[4:])
                    if length > _MOST_BYTES:
                        raise aiodocker.DockerError(NO_DOCKER, f"a piece of a log has {length} bytes")
                    piece = await reply.content.readexactly(length)
                    stamp = _STAMP.match(piece)
                    if stamp is None:
                        yield piece
                    elif _order(stamp) > self._seen:
                        self._seen = _order(stamp)
                        yield piece[stamp.end() :]
        except asyncio.IncompleteReadError:
            return
        except aiodocker.DockerError as error:
            if _CANNOT_BE_READ in error.message:
                raise NotReadable from error
            raise


def _order(stamp: re.Match[bytes]) -> bytes:
    """Docker leaves out zeros at the end of a time."""
    return stamp[1] + (stamp[2] or b".").ljust(10, b"0")


def _epoch(seen: bytes) -> str:
    """As Docker takes it: seconds, and nanoseconds after the point."""
    text = seen.decode()
    return f"{int(datetime.fromisoformat(text[:19] + '+00:00').timestamp())}{text[19:]}"
