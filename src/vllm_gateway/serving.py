# SPDX-License-Identifier: Apache-2.0
"""The life of the process: listening, reloading, handing over to a new one, and an end that cuts nothing short."""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import web

from vllm_gateway import __version__
from vllm_gateway.allocator.probe import ProbeError
from vllm_gateway.api.front_door import FrontDoor
from vllm_gateway.app import Gateway, names_of
from vllm_gateway.ending import Ending
from vllm_gateway.fleet.runtimes import RuntimeDown
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.handover import CannotTakeOver, Predecessor, Successor, control_path
from vllm_gateway.leftovers import own_folder
from vllm_gateway.listening import BACKLOG, bind, inherited, port_of, url_of
from vllm_gateway.reloading import WATCH_S, Reloader, Watch
from vllm_gateway.scheduling import StrategyError
from vllm_gateway.settings import Gpus, Settings
from vllm_gateway.simulator.gpu_memory import SimulatedGpus
from vllm_gateway.telemetry import events, log

_ERROR_EVENTS_S = 5.0  # for the last words to reach their clients
_QUIET_S = 1.0  # where others take new connections: no request for so long, and the kept ones are closed
_CALLED_AGAIN_S = 2.0  # until whoever starts gateways has called the next one, and its code is loaded


class Serving:
    """A gateway that listens."""

    def __init__(
        self,
        gateway: Gateway,
        runner: web.ServerRunner,
        door: FrontDoor,
        sockets: list[socket.socket],
        ending: Ending,
        *,
        outlived: bool,
    ) -> None:
        self.gateway = gateway
        self.outlived = outlived
        """By its sockets: systemd holds them, and new connections wait there for the next gateway."""
        self.opens_within_s = 0.0  # as this one did
        self.address = url_of(sockets[0])
        self.port = port_of(sockets)
        self._runner = runner
        self._door = door
        self._sockets = sockets
        self._ending = ending
        self._has_successor = False
        self._drained_by: float | None = None
        self._sites = [web.SockSite(runner, one, backlog=BACKLOG) for one in sockets]

    async def open(self) -> None:
        for site in self._sites:
            await site.start()

    async def give(self) -> Sequence[socket.socket]:
        """What a successor needs, once the fleet has come to rest. Raises CannotTakeOver."""
        await self.gateway.hand_over()
        return self._sockets

    async def leave(self, limit_s: float) -> None:
        """After a hand-over; cut short when the end is asked for."""
        self._has_successor = True
        await self.finish(limit_s, self._ending.asked)

    async def finish(self, limit_s: float, at_once: asyncio.Event) -> None:
        """Serves the connections there are, and tells each client to open a new one next time: others take it."""
        for site in self._sites:
            await site.stop()
        self._door.leaving = True
        quiet_since = now = _now()
        self._drained_by = now + limit_s
        while now < self._drained_by and now - quiet_since < _QUIET_S and not at_once.is_set():
            await asyncio.sleep(_QUIET_S / 10)
            now = _now()
            if self.gateway.queues.unfinished:
                quiet_since = now

    async def close(self, limit_s: float) -> None:
        """No new requests. What is under way has `limit_s` to end by itself, and is then told that this is the end."""
        now = _now()
        drained_by = self._drained_by or now + limit_s
        self._say_when_to_return(drained_by)
        ending = asyncio.create_task(self._end_at(drained_by))
        try:
            await self._runner.cleanup()
        finally:
            ending.cancel()
            await asyncio.wait({ending})

    async def _end_at(self, drained_by: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(drained_by):
                await self._ending.at_once.wait()
        self._say_when_to_return(_now())
        self.gateway.queues.close(self.gateway.inference.goodbye())
        await self.gateway.relay.close()

    def _say_when_to_return(self, drained_by: float) -> None:
        """The next gateway is not called before this one has ended, unless it is there already.

        The start of a model does not count: it begins when somebody asks the next gateway, and is waited for there.
        """
        called_s = 0.0 if self._has_successor else _CALLED_AGAIN_S + self.opens_within_s
        self.gateway.inference.return_at = (_now() if self._has_successor else drained_by) + called_s


def _now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def serving(
    settings: Settings,
    emit: Callable[..., None],
    ending: Ending,
    handed_in: list[socket.socket],
    predecessor: Predecessor | None,
) -> AsyncIterator[Serving]:
    """Raises OSError, ProbeError, RuntimeDown, StrategyError."""
    with _simulated_gpus(settings.gpus) as simulated:
        gateway = Gateway(settings, simulated, emit, predecessor)
        sockets = predecessor.sockets if predecessor else handed_in
        sockets = sockets or bind(settings.server.host, settings.server.port)
        door = FrontDoor(gateway.api)
        limit_s = settings.server.drain_timeout_s
        runner = web.ServerRunner(door, handle_signals=False, shutdown_timeout=limit_s + _ERROR_EVENTS_S)
        await runner.setup()
        server = Serving(gateway, runner, door, sockets, ending, outlived=bool(handed_in))
        began = _now()
        try:
            if predecessor is None:
                await server.open()  # /health is answered while the fleet opens
            await gateway.open()
            try:
                gateway.api.opened.set()
                if predecessor is not None:
                    await server.open()  # not before it is sure that this one can serve
                server.opens_within_s = _now() - began
                yield server
            finally:
                await server.close(limit_s)
                await gateway.close()
        finally:
            gateway.inference.return_at = gateway.inference.return_at or _now()
            gateway.api.opened.set()  # whoever waits for a fleet that could not be opened
            await runner.cleanup()


@contextmanager
def _simulated_gpus(gpus: Gpus) -> Iterator[Path | None]:
    """Their folder, if that is what there is to be. Raises OSError."""
    if gpus.source != "simulated":
        yield None
        return
    with own_folder("vllm-gateway-gpus-") as folder:
        SimulatedGpus(folder).create([(device.name, device.memory_mib) for device in gpus.devices])
        yield folder


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def _keep_freed_memory() -> None:
    """The C library would give the memory of a large body back at once, and the next body would pay in page faults."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        mallopt(_M_TRIM_THRESHOLD, 32 << 20)


async def serve(
    settings: Settings, load: Callable[[], Settings], config_file: Path | None, *, take_over: bool = False
) -> int:
    """Serves until SIGTERM or Ctrl-C, or until another one has taken over; returns the exit status.

    `load` reads the settings again.
    """
    hung_up = asyncio.Event()  # by SIGHUP: read the configuration again, once that can be done
    watch = Watch(config_file, hung_up.set) if config_file is not None and settings.reload == "watch" else None
    log.configure(settings.log)
    _keep_freed_memory()
    ending = Ending(asyncio.current_task())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.ask)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    emit = log.get_logger().emit
    tasks = Tasks(emit)
    try:
        emit(events.GATEWAY_STARTING, version=__version__, runtime=settings.runtime)
        handed_in = inherited(os.environ)
        predecessor = await Predecessor.ask(control_path(settings, port_of(handed_in))) if take_over else None
        if predecessor is not None:
            tasks.spawn(predecessor.follow(names_of(settings)))
        async with serving(settings, emit, ending, handed_in, predecessor) as server:
            ending.started()
            if predecessor is not None:
                await predecessor.say_ready()
            reloader = Reloader(settings, load, server.gateway.reconfigure, emit, hung_up)
            reloading = [tasks.repeat(reloader.follow, 0.0)]
            if watch is not None:
                reloading.append(tasks.repeat(watch.look, WATCH_S))
            emit(events.GATEWAY_READY, address=server.address)
            is_demo = sys.stdout.isatty() or settings.gpus.source == "simulated"
            if is_demo and server.port is not None:  # for people
                log.flush()  # another thread writes the lines: those that came first are to be read first
                print(_hint(settings, server.address), file=sys.stderr, flush=True)
            await _until_its_end(server, settings, ending, tasks, emit)
            for task in reloading:
                task.cancel()
        emit(events.GATEWAY_STOPPED)
    except asyncio.CancelledError:
        if not ending.asked.is_set():
            raise
        emit(events.GATEWAY_STOPPED)
    except (OSError, ProbeError, RuntimeDown, StrategyError, CannotTakeOver) as error:
        text = error.strerror if isinstance(error, OSError) and not error.filename else None
        print(f"vllm-gateway cannot start: {text or error}", file=sys.stderr)
        return 1
    finally:
        await tasks.end()
        log.shutdown()
    return 0


async def _until_its_end(
    server: Serving, settings: Settings, ending: Ending, tasks: Tasks, emit: Callable[..., None]
) -> None:
    gateway, limit_s, handed_over = server.gateway, settings.server.drain_timeout_s, False
    path = control_path(settings, server.port)
    successor = Successor(
        path, give=server.give, take_back=gateway.take_back, work=gateway.work, refuse=gateway.queues.refuse
    )
    try:
        successor.open()
    except OSError as error:
        emit(events.CONTROL_SOCKET_PROBLEM, path=str(path), problem=str(error))
        await ending.asked.wait()
    else:
        waiting = {asyncio.create_task(ending.asked.wait()), coming := asyncio.create_task(successor.come())}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        handed_over = coming.done()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        successor.close(handed_over=handed_over)
        if handed_over:
            emit(events.GATEWAY_HANDED_OVER)
            tasks.spawn(successor.report())
            await server.leave(limit_s)
    if server.outlived and not handed_over:
        await server.finish(limit_s, ending.at_once)
    emit(events.GATEWAY_STOPPING)


def _hint(settings: Settings, address: str) -> str:
    model = next(iter(settings.models), "")
    key = " -H 'Authorization: Bearer KEY'" if settings.server.api_keys else ""
    return (
        f"\n  Try:     curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n"
        f'             -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}\'\n'
        f"  Status:  {address}/gateway/status, or: vllm-gateway status --url {address}\n"
        "  Stop:    Ctrl-C\n"
    )
