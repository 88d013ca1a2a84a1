# SPDX-License-Identifier: Apache-2.0
"""Reads along what a container writes, from its first line, also over a restart of the Docker engine."""

import asyncio
import re
from collections import Counter, deque
from collections.abc import AsyncIterator
from datetime import datetime

import aiodocker

from vllm_gateway.fleet.runtimes.docker_client import NO_DOCKER, up_to
from vllm_gateway.fleet.runtimes.output import MOST_LINES

_HEAD_BYTES = 8  # which stream it is, and how long the piece
_MOST_BYTES = 1 << 20
_LATE_S = 1
_CANNOT_BE_READ = "does not support reading"
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z ")


class NotReadable(Exception):
    """Docker's logging driver keeps nothing that could be read."""


class ContainerLog:
    """Each piece is told once: what comes a second time, after a gap, is known by its time, its stream and its text.

    Its time alone would not do: Docker passes on what comes on two streams a little out of order, and the pieces of a
    long line have the same.
    """

    def __init__(self, container: str) -> None:
        self._path = f"containers/{container}/logs"
        self._told: deque[tuple[bytes, int]] = deque(maxlen=MOST_LINES)  # the last ones: when, and a hash

    async def pieces(self, client: aiodocker.Docker) -> AsyncIterator[bytes]:
        """All that has not been told, and what comes, until the container or the connection ends.

        Raises NotReadable, DockerError, aiohttp.ClientError, TimeoutError.
        """
        params = {"follow": "1", "stdout": "1", "stderr": "1", "timestamps": "1", "tail": str(MOST_LINES)}
        again = Counter(self._told)
        if again:
            params |= {"since": self._since(), "tail": "all"}
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
                        continue
                    mark = (_order(stamp), hash((head[0], piece)))
                    if again[mark]:
                        again[mark] -= 1
                    else:
                        self._told.append(mark)
                        yield piece[stamp.end() :]
        except asyncio.IncompleteReadError:
            return
        except aiodocker.DockerError as error:
            if _CANNOT_BE_READ in error.message:
                raise NotReadable from error
            raise

    def _since(self) -> str:
        """A little before the last one, as others may come late; and not before what is remembered."""
        times = [time for time, _ in self._told]
        latest, oldest = _seconds(max(times)), _seconds(min(times))
        seconds, fraction = max((latest[0] - _LATE_S, latest[1]), oldest)
        return f"{seconds}{fraction}"


def _order(stamp: re.Match[bytes]) -> bytes:
    """Docker leaves out zeros at the end of a time."""
    return stamp[1] + (stamp[2] or b".").ljust(10, b"0")


def _seconds(time: bytes) -> tuple[int, str]:
    """Since 1970, and the fraction with its point, as Docker takes them."""
    text = time.decode()
    return int(datetime.fromisoformat(text[:19] + "+00:00").timestamp()), text[19:]
