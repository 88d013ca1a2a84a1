# SPDX-License-Identifier: Apache-2.0
"""Engines in containers. Docker is the truth about them; the labels say which are ours, and no other is touched."""

import asyncio
import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer

from vllm_gateway.configuration.settings import Docker, Settings
from vllm_gateway.fleet.runtimes import Exit, Found, Launch, Progress, Running, RuntimeDown, StartError, docker_images
from vllm_gateway.fleet.runtimes import docker_spec as spec
from vllm_gateway.fleet.runtimes.docker_client import ASK_S, DO_S, NO_DOCKER, Calls, DockerClient, up_to
from vllm_gateway.fleet.runtimes.docker_events import DockerEvents
from vllm_gateway.fleet.runtimes.docker_output import ContainerLog, NotReadable
from vllm_gateway.fleet.runtimes.output import KEPT_LINES, Outputs, clean_line, says_out_of_memory
from vllm_gateway.fleet.runtimes.sockets import EngineSockets
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.log import EventLogger, get_logger
from vllm_gateway.telemetry.secrets import Secrets

_LOOK_AGAIN_S = 30.0  # without any event
_LOOK_AGAIN_SOON_S = 1.0  # when Docker did not answer
_FOLLOW_AGAIN_S = 1.0
_LOOK_FOR_DOCKER_S = 5.0
_PING_S = 8.0
_EXEC_S = 5.0
_ENDING_S = 3.0  # within which a Docker engine that fails at a start because it is about to end is gone
_UNKNOWN_EXIT = 137
_LAST_OUTPUT_S = 1.0

_REMEDIES = (
    (
        "could not select device driver",
        "Docker cannot hand out GPUs: install nvidia-container-toolkit, run "
        "`nvidia-ctk runtime configure --runtime=docker` and restart Docker",
    ),
    (r"network \S+ not found", "Create the network with `docker network create`, or correct `docker.network`"),
)


class DockerRuntime:
    """Starts instances as containers of the Docker engine that DOCKER_HOST names. The handle is the container's id."""

    def __init__(
        self,
        settings: Docker,
        owner: str,
        secrets: Secrets | None = None,
        port: int = 8000,
        log: EventLogger | None = None,
        *,
        sockets: EngineSockets,
        outputs: Outputs | None = None,
    ) -> None:
        self._secrets = secrets or Secrets()
        self._outputs = outputs or Outputs(self._secrets)
        self._readers: dict[str, asyncio.Task[None]] = {}  # of what containers write, until these are removed
        self._settings = settings
        self._owner = owner
        self._port = port
        self._sockets = sockets
        self._strangers: set[str] = set()  # containers that were told of as not ours
        self._log = log if log is not None else get_logger()
        self._calls = Calls(self._log)
        self._events = DockerEvents(owner, self._log, self._calls)
        self._tasks = Tasks(self._log.emit)
        self._client: DockerClient | None = None

    async def open(self) -> None:
        try:
            client = DockerClient(self._calls)
        except (AssertionError, ValueError) as error:
            raise RuntimeDown("No Docker engine was found. Start Docker, or name it in DOCKER_HOST.") from error
        try:
            with _docker_may_be_down():
                await client.version()
                await self._tell_missing_network(client)
        except RuntimeDown as error:
            await client.close()
            where = os.environ.get("DOCKER_HOST", "its usual socket")
            raise RuntimeDown(f"Docker at {where} cannot be used: {error}") from error
        except BaseException:
            await client.close()
            raise
        self._client = client
        await asyncio.to_thread(self._sockets.sweep)
        self._tasks.repeat(self._events.follow, _FOLLOW_AGAIN_S)
        self._tasks.repeat(self._look_for_docker, _LOOK_FOR_DOCKER_S)

    async def _look_for_docker(self) -> None:
        """One that hangs keeps its connections, and says nothing."""
        if self._events.problem is None:
            try:
                await self._docker._query_json("_ping", timeout=up_to(_PING_S), versioned_api=False)
            except (TimeoutError, aiohttp.ClientError) as error:
                self._events.interrupt(str(error) or f"Docker has not answered for {_PING_S:g} s")
            except aiodocker.DockerError as error:
                if error.status == NO_DOCKER:
                    self._events.interrupt(error.message)

    async def _tell_missing_network(self, client: DockerClient) -> None:
        """Said early: else it shows at the first request. It may still come."""
        network = self._settings.network
        if network is None:
            return
        try:
            await client.networks.get(network)
        except aiodocker.DockerError as error:
            if error.status != 404:
                raise
            self._log.emit(events.DOCKER_NETWORK_MISSING, network=network)

    async def close(self) -> None:
        await self._tasks.end()
        if self._client is not None:
            await self._client.close()

    @property
    def problem(self) -> str | None:
        return self._events.problem

    @property
    def unanswered(self) -> list[str]:
        return self._calls.unanswered()

    async def returned(self) -> None:
        await self._events.back.wait()
        self._events.back.clear()

    def reconfigure(self, settings: Settings) -> None:
        self._settings = settings.docker

    async def find(self) -> list[Found]:
        filters = json.dumps({"label": [f"{spec.OWNER_LABEL}={self._owner}"]})
        with _docker_may_be_down():
            listed = await self._docker.containers.list(all=1, filters=filters)
            looked_at = [await self._inspect_ours(container.id) for container in listed]
        return [spec.found(there, self._port) for there in looked_at if there is not None]

    async def fetch(self, image: str, told: Callable[[Progress], None]) -> None:
        with _docker_may_be_down():
            await docker_images.provide(self._docker, image, self._settings, self._log, told)

    async def start(self, launch: Launch) -> Running:
        ends = self._events.ends
        with _docker_may_be_down():
            try:
                container = await self._create(launch)
                try:
                    spec.check_gpus(launch, await container.show())
                    await container.start()
                    return spec.running(await container.show(), self._port)
                except BaseException:
                    with contextlib.suppress(RuntimeDown):  # then it is removed as a stranger later
                        await asyncio.shield(self.remove(container.id))
                    raise
            except aiodocker.DockerError as error:
                if await self._may_pass(error, ends):
                    raise
                raise _start_error(launch, error) from error

    async def open_way(self, running: Running) -> None:
        """A socket is its maker's alone, who in most images is root; the folder around it keeps everybody else out."""
        path = running.address.path
        if not path or os.access(path, os.W_OK) or not os.access(path, os.F_OK):
            return
        with _docker_may_be_down(), self._calls.under_way(f"exec in {running.handle[:12]}", _EXEC_S):
            container = self._docker.containers.container(running.handle)
            command = await container.exec(["chmod", "0666", spec.SOCKET])
            async with asyncio.timeout(ASK_S), command.start(detach=False) as stream:
                while await stream.read_out() is not None:
                    pass

    async def wait(self, handle: str) -> Exit:
        if handle not in self._readers:
            self._readers[handle] = self._tasks.spawn(self._read_output(handle))
        with self._events.watch(handle) as watch:
            while True:
                watch.news.clear()
                look_again_s = _LOOK_AGAIN_S
                try:
                    ended = await self._ended(handle, watch.exit_code)
                    if ended is not None:
                        await self._last_output(handle)
                        return ended
                except RuntimeDown:
                    look_again_s = _LOOK_AGAIN_SOON_S
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(watch.news.wait(), look_again_s)

    async def stop(self, handle: str, grace_s: float) -> None:
        with _docker_may_be_down():
            if await self._inspect_ours(handle) is None:
                return
            limit = up_to(grace_s + DO_S)
            with _gone_is_fine():
                await self._docker.containers.container(handle).stop(t=math.ceil(grace_s), timeout=limit)
        await self.remove(handle)

    async def remove(self, handle: str) -> None:
        with _docker_may_be_down():
            inspected = await self._inspect_ours(handle)
            if inspected is None:
                self._readers.pop(handle, None)
                return
            if not inspected["State"]["Running"]:
                await self._last_output(handle)
            try:
                await self._docker.containers.container(handle).delete(force=True, v=True)
            except aiodocker.DockerError as error:
                if error.status == 409:  # Docker is at it, and may yet fail
                    raise RuntimeDown(error.message) from error
                if error.status != 404:
                    raise
        self._readers.pop(handle, None)
        if path := spec.socket_of(inspected):
            self._sockets.remove(path)

    async def pids(self, handle: str) -> frozenset[int]:
        """All processes; where the engine's host has no `ps`, the first one."""
        with _docker_may_be_down():
            inspected = await self._inspect_ours(handle)
            if inspected is None or not inspected["State"]["Running"]:
                return frozenset()
            try:
                top = await self._docker._query_json(f"containers/{handle}/top", params={"ps_args": "-eo pid"})
            except aiodocker.DockerError as error:
                if error.status == NO_DOCKER:
                    raise
                return frozenset({inspected["State"]["Pid"]})
            return frozenset(int(row[0]) for row in top["Processes"] or ())  # null if it has just ended

    @property
    def _docker(self) -> DockerClient:
        if self._client is None:
            raise RuntimeDown("Docker was not there when the gateway began. Start it, then restart the gateway.")
        return self._client

    async def _inspect_ours(self, handle: str) -> dict[str, Any] | None:
        """The container as Docker sees it; None if it is gone or somebody else's."""
        try:
            inspected = await self._docker.containers.container(handle).show()
        except aiodocker.DockerError as error:
            if error.status == 404:
                return None
            raise
        if spec.owner_of(inspected) != self._owner:
            return None
        name = spec.name_of(inspected)
        if name == spec.name_by_labels(inspected) and handle in (inspected["Id"], name):
            return inspected
        if inspected["Id"] not in self._strangers:
            self._strangers.add(inspected["Id"])
            self._log.emit(events.CONTAINER_NOT_OURS, container=name, instance=spec.name_by_labels(inspected))
        return None

    async def _ended(self, handle: str, told_exit_code: int | None) -> Exit | None:
        with _docker_may_be_down():
            inspected = await self._inspect_ours(handle)
            if inspected is None:
                return Exit(_UNKNOWN_EXIT if told_exit_code is None else told_exit_code)
            state = inspected["State"]
            if state["Running"] or state["Status"] == "created":
                return None
            self._learn_secrets(inspected)
            tail = await self._log_tail(handle)
            return Exit(state["ExitCode"], says_out_of_memory(tail), bool(state["OOMKilled"]), tail)

    def _learn_secrets(self, inspected: dict[str, Any]) -> None:
        """That a container was given, perhaps by an earlier gateway."""
        config = inspected["Config"]
        given = (pair.partition("=") for pair in config.get("Env") or ())
        self._secrets.learn_environment({name: value for name, _, value in given})
        self._secrets.learn_arguments(config.get("Cmd") or ())

    async def _last_output(self, handle: str) -> None:
        """Of a container that has ended."""
        if (reader := self._readers.get(handle)) is not None:
            await asyncio.wait({reader}, timeout=_LAST_OUTPUT_S)

    async def _read_output(self, handle: str) -> None:
        """Returns when the container has ended and all is read, or nothing can be; once for each."""
        log, pause_s = ContainerLog(handle), 0.0
        with contextlib.ExitStack() as stack:
            output = None
            while True:
                await asyncio.sleep(pause_s)
                pause_s = _FOLLOW_AGAIN_S
                with contextlib.suppress(RuntimeDown), _docker_may_be_down():
                    inspected = await self._inspect_ours(handle)
                    if inspected is None:
                        return
                    if output is None:
                        self._learn_secrets(inspected)
                        named = spec.name_of(inspected), spec.model_of(inspected)
                        output = stack.enter_context(self._outputs.of_engine(*named))
                    try:
                        async with DockerClient(self._calls) as client:  # its connection is taken for long
                            async for piece in log.pieces(client):
                                output.feed(piece)
                    except NotReadable:
                        return
                    if not inspected["State"]["Running"]:
                        return
                    if not await self._is_running(handle):
                        pause_s = 0.0  # once more: it may have been the connection that ended

    async def _is_running(self, handle: str) -> bool:
        inspected = await self._inspect_ours(handle)
        return inspected is not None and bool(inspected["State"]["Running"])

    async def _log_tail(self, handle: str) -> tuple[str, ...]:
        """Empty where Docker cannot read it: it is gone, or its logging driver keeps nothing."""
        container = self._docker.containers.container(handle)
        try:
            pieces = await container.log(stdout=True, stderr=True, tail=KEPT_LINES, timeout=up_to(ASK_S))
        except aiodocker.DockerError as error:
            if error.status == NO_DOCKER:
                raise
            return ()
        shown = (clean_line(line, self._secrets) for line in "".join(pieces).split("\n"))
        return tuple(line for line in shown if line)[-KEPT_LINES:]

    async def _create(self, launch: Launch) -> DockerContainer:
        """Leaves nothing if it fails."""
        network = self._settings.network
        if network is None and launch.on_port:
            network = await self._own_network()
        try:
            socket = None if launch.on_port else self._sockets.make(in_container=True)
        except OSError as error:
            raise StartError(f"There is no place for the engine's socket: {error}") from error
        config = spec.container_config(launch, self._settings, self._owner, self._port, socket=socket, network=network)
        try:
            try:
                return await self._docker.containers.create(config, name=launch.name)
            except aiodocker.DockerError as error:
                if error.status != 409 or not await self._remove_namesake(launch.name):
                    raise
            return await self._docker.containers.create(config, name=launch.name)
        except BaseException:
            if socket is not None:
                self._sockets.remove(socket)
            raise

    async def _own_network(self) -> str:
        """Made when it is first needed; it stays."""
        wanted = spec.own_network(self._owner)
        name: str = wanted["Name"]
        try:
            there = await (await self._docker.networks.get(name)).show()
        except aiodocker.DockerError as error:
            if error.status != 404:
                raise
            await self._docker.networks.create(wanted)
            return name
        if (there.get("Labels") or {}).get(spec.OWNER_LABEL) != self._owner:
            raise StartError(f"A network named {name!r} exists and is not this gateway's. Remove it, or name one in "
                             "`docker.network`.")  # fmt: skip
        return name

    async def _may_pass(self, error: aiodocker.DockerError, ends_before: int) -> bool:
        """One that is about to end fails at whatever it is asked."""
        if error.status < 500 or _remedy(error.message):
            return False
        return error.status == NO_DOCKER or await self._events.has_ended(ends_before, _ENDING_S)

    async def _remove_namesake(self, name: str) -> bool:
        """Frees the name if it is one of ours that holds it."""
        inspected = await self._inspect_ours(name)
        if inspected is not None:
            await self.remove(inspected["Id"])
        return inspected is not None


def _start_error(launch: Launch, error: aiodocker.DockerError) -> StartError:
    """Docker's own words, and what to do about them."""
    if error.status == 409:
        return StartError(
            f"A container named {launch.name!r} exists and is not this gateway's. Remove it, or choose another "
            "`docker.container_prefix`."
        )
    message = error.message.rstrip(".")
    return StartError(f"Docker could not start {launch.name!r}: {message}.{_remedy(message)}")


def _remedy(message: str) -> str:
    return next((f" {advice}." for sign, advice in _REMEDIES if re.search(sign, message)), "")


@contextlib.contextmanager
def _docker_may_be_down() -> Iterator[None]:
    try:
        yield
    except aiodocker.DockerError as error:
        raise RuntimeDown(error.message) from error
    except json.JSONDecodeError as error:
        raise RuntimeDown(f"Docker's answer makes no sense: {error}") from error
    except TimeoutError as error:
        raise RuntimeDown("Docker did not answer in time.") from error
    except aiohttp.ClientError as error:
        raise RuntimeDown(f"Docker did not answer: {str(error) or repr(error)}") from error


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    """Lets pass that a container does not exist any more, or is just being removed."""
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status not in {404, 409}:
            raise
