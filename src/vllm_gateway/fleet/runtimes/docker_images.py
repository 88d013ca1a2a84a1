# SPDX-License-Identifier: Apache-2.0
"""An image is there, or is pulled: for as long as something moves, and no longer than it may take."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import aiodocker

from vllm_gateway.configuration.settings import Docker
from vllm_gateway.fleet.runtimes import Progress, RuntimeDown, StartError
from vllm_gateway.fleet.runtimes.docker_client import NO_DOCKER, DockerClient, up_to
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.log import EventLogger

_LOGGED_EVERY_S = 5.0
_OF_THE_STREAM = 0  # in place of a status


async def provide(
    client: DockerClient, image: str, settings: Docker, log: EventLogger, told: Callable[[Progress], None]
) -> None:
    """Raises StartError, RuntimeDown, and what the client raises while Docker does not answer."""
    try:
        if settings.pull != "always" and await _is_here(client, image):
            return
    except aiodocker.DockerError as error:
        if error.status >= 500:
            raise
        raise StartError(
            f"Docker cannot look for the image {image!r}: {error.message}. Correct `docker.image`."
        ) from error
    if settings.pull == "never":
        raise StartError(
            f"The image {image!r} is not here and `docker.pull` is `never`. Run `docker pull {image}`, "
            "correct `docker.image`, or allow pulling."
        )
    try:
        await _pull(client, image, settings, log, told)
    except aiodocker.DockerError as error:
        if error.status == NO_DOCKER:
            raise
        raise StartError(
            f"The image {image!r} could not be pulled: {error.message}. Check its name (`docker.image`), "
            f"the network and the disk, or load it by hand with `docker pull {image}`."
        ) from error
    if not await _is_here(client, image):
        raise RuntimeDown(f"Docker broke off the pull of {image!r}.")


async def _is_here(client: DockerClient, image: str) -> bool:
    try:
        await client.images.inspect(image)
    except aiodocker.DockerError as error:
        if error.status != 404:
            raise
        return False
    return True


async def _pull(
    client: DockerClient, image: str, settings: Docker, log: EventLogger, told: Callable[[Progress], None]
) -> None:
    log.emit(events.IMAGE_PULL_STARTED, image=image)
    layers = _Layers()
    clock = asyncio.get_running_loop().time
    began = time.monotonic()
    logged = began - _LOGGED_EVERY_S
    stall_s, end = settings.pull_stall_s, clock() + settings.pull_timeout_s
    limit = asyncio.timeout_at(min(clock() + stall_s, end))
    try:
        async with limit, aclosing(_steps(client, image)) as steps:
            async for step in steps:
                if not layers.take(step):
                    continue
                limit.reschedule(min(clock() + stall_s, end))
                progress = layers.progress()
                told(progress)
                if progress.total_mib and time.monotonic() - logged >= _LOGGED_EVERY_S:
                    logged = time.monotonic()
                    log.emit(
                        events.IMAGE_PULL_PROGRESS,
                        image=image,
                        status=progress.status,
                        percent=progress.percent,
                        done_mib=progress.done_mib,
                        total_mib=progress.total_mib,
                    )
    except asyncio.CancelledError:
        log.emit(events.IMAGE_PULL_ENDED, image=image)
        raise
    except TimeoutError as error:
        if not limit.expired():
            raise
        what = (
            f"was not done after {settings.pull_timeout_s:g} s (`docker.pull_timeout_s`)"
            if clock() >= end
            else f"did not move for {stall_s:g} s (`docker.pull_stall_s`)"
        )
        raise StartError(
            f"The pull of {image!r} {what}. Check the network and the registry, or load it by hand with "
            f"`docker pull {image}`."
        ) from error
    log.emit(events.IMAGE_PULLED, image=image, seconds=round(time.monotonic() - began, 1))


async def _steps(client: DockerClient, image: str) -> AsyncGenerator[dict[str, Any]]:
    """What Docker tells of a pull, which ends with the connection: the client's own leaves that to chance."""
    tagged = "@" in image or ":" in image.rpartition("/")[2]
    params = {"fromImage": image if tagged else f"{image}:latest"}
    async with client._query("images/create", "POST", params=params, timeout=up_to(None)) as reply:
        try:
            async for line in reply.content:
                step = json.loads(line)
                if "error" in step:
                    raise aiodocker.DockerError(_OF_THE_STREAM, str(step["error"]))
                yield step
        finally:
            reply.close()


class _Layers:
    """What Docker tells of each layer. It may tell the same again and again while nothing moves."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Any, Any]] = {}
        self._bytes: dict[str, tuple[int, int]] = {}  # done and in all, of those whose download has begun
        self._status = ""

    def take(self, step: dict[str, Any]) -> bool:
        """Whether it is news."""
        layer, self._status = str(step.get("id", "")), str(step.get("status", ""))
        detail = step.get("progressDetail") or {}
        said = self._status, detail.get("current")
        if self._said.get(layer) == said:
            return False
        self._said[layer] = said
        if self._status == "Downloading" and detail.get("total"):
            self._bytes[layer] = detail.get("current", 0), detail["total"]
        elif self._status in ("Download complete", "Pull complete") and layer in self._bytes:
            self._bytes[layer] = self._bytes[layer][1], self._bytes[layer][1]
        return True

    def progress(self) -> Progress:
        done, total = (sum(column) for column in zip(*self._bytes.values(), strict=True)) if self._bytes else (0, 0)
        return Progress(self._status, 100 * done // max(total, 1), done >> 20, total >> 20)
