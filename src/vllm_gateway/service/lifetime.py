# SPDX-License-Identifier: Apache-2.0
"""The life of the process: signals, reloading, handing over to a new one, and the exit status."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from vllm_gateway import __version__
from vllm_gateway.allocator.probe import ProbeError
from vllm_gateway.app import names_of
from vllm_gateway.configuration.draft import ConfigError
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.files.watch import Watch
from vllm_gateway.fleet.predecessor import CannotTakeOver
from vllm_gateway.fleet.runtimes import RuntimeDown
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.scheduling import StrategyError
from vllm_gateway.service import first_signals
from vllm_gateway.service.control_socket import ControlSocket
from vllm_gateway.service.ending import Ending
from vllm_gateway.service.handover import Predecessor, Successor
from vllm_gateway.service.listening import inherited, port_of
from vllm_gateway.service.reloading import WATCH_S, Reloader
from vllm_gateway.service.serving import Serving, serving
from vllm_gateway.service.tls import WATCH_S as TLS_WATCH_S
from vllm_gateway.telemetry import events, log
from vllm_gateway.telemetry.terminal import say

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def _keep_freed_memory() -> None:
    """The C library would give the memory of a large body back at once, and the next body would pay in page faults."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        mallopt(_M_TRIM_THRESHOLD, 32 << 20)


async def serve(
    settings: Settings, load: Callable[[Settings], Settings], config_file: Watch | None, *, take_over: bool = False
) -> int:
    """Serves until SIGTERM or Ctrl-C, or until another one has taken over; returns the exit status.

    `load` reads the settings again, given those that count; `config_file`: from before it was read.
    """
    hung_up = asyncio.Event()  # by SIGHUP: read the configuration again, once that can be done
    ending = Ending(asyncio.current_task())
    _hear_signals(ending, hung_up)
    log.configure(settings.log)
    _keep_freed_memory()
    emit = log.get_logger().emit
    tasks = Tasks(emit)
    try:
        emit(events.GATEWAY_STARTING, version=__version__, runtime=settings.runtime)
        handed_in = inherited(os.environ)
        control = ControlSocket(settings, port_of(handed_in), emit)
        predecessor = await Predecessor.find(control) if take_over else None
        if predecessor is not None:
            tasks.spawn(predecessor.follow(names_of(settings)))
            tasks.spawn(predecessor.say_alive())
        async with serving(settings, emit, ending, handed_in, predecessor) as server:
            ending.started()
            if predecessor is not None:
                await _take_its_place(server, predecessor)
            reloader = Reloader(settings, load, server.reconfigure, emit, hung_up)
            reloading = [tasks.repeat(reloader.follow, 0.0), tasks.repeat(server.tls.watch, TLS_WATCH_S)]
            if config_file is not None and settings.reload == "watch":
                reloading.append(tasks.repeat(partial(_look, config_file, hung_up), WATCH_S))
            successor = _successor_of(server, settings, emit, replaces_living=server.took_over)
            emit(events.GATEWAY_READY, address=server.address)
            _tell_people(settings, server)
            while not await _until_its_end(server, successor, settings.server.drain_timeout_s, ending, tasks):
                emit(events.GATEWAY_GOES_ON)
                successor = _successor_of(server, settings, emit, replaces_living=False)
            emit(events.GATEWAY_STOPPING)
            if predecessor is not None:
                predecessor.say_end()
            for task in reloading:
                task.cancel()
        emit(events.GATEWAY_STOPPED)
    except asyncio.CancelledError:
        if not ending.asked.is_set():
            raise
        emit(events.GATEWAY_STOPPED)
    except (OSError, ConfigError, ProbeError, RuntimeDown, StrategyError, CannotTakeOver) as error:
        text = error.strerror if isinstance(error, OSError) and not error.filename else None
        say(f"vllm-gateway cannot start: {log.masked(text or str(error))}", sys.stderr)
        return 1
    finally:
        await tasks.end()
        log.shutdown()
    return 0


async def _look(watch: Watch, hung_up: asyncio.Event) -> None:
    if await watch.look():
        hung_up.set()


async def _take_its_place(server: Serving, predecessor: Predecessor) -> None:
    """Raises CannotTakeOver."""
    try:
        await predecessor.say_ready()
    except CannotTakeOver:
        server.give_back()
        raise


def _successor_of(
    server: Serving, settings: Settings, emit: Callable[..., None], *, replaces_living: bool
) -> Successor:
    gateway = server.gateway
    successor = Successor(
        ControlSocket(settings, server.port, emit, replaces_living=replaces_living),
        emit,
        give=server.give,
        take_back=gateway.take_back,
        work=gateway.work,
        refuse=gateway.queues.refuse,
    )
    successor.open()
    return successor


async def _until_its_end(server: Serving, successor: Successor, limit_s: float, ending: Ending, tasks: Tasks) -> bool:
    """Returns when a signal has asked for it, or another gateway has taken over and left nothing to do here.

    False: it took over and died, and this one has to go on.
    """
    waiting = [asyncio.create_task(ending.asked.wait()), asyncio.create_task(successor.come())]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await _end(*waiting)
    successor.close()
    handed_over = successor.has_come
    if handed_over and not await _leave(server, successor, limit_s, tasks):
        return False
    if server.outlived and not handed_over:
        await server.finish(limit_s, ending.at_once)
    return True


async def _leave(server: Serving, successor: Successor, limit_s: float, tasks: Tasks) -> bool:
    """False: the successor has died before the end."""
    tasks.spawn(successor.report())
    leaving = asyncio.create_task(server.leave(limit_s))
    dying = asyncio.create_task(successor.died())
    try:
        await asyncio.wait({leaving, dying}, return_when=asyncio.FIRST_COMPLETED)
        if not leaving.done():
            if dying.result():
                await _end(leaving)
                server.go_on()
                return False
            await server.stop_accepting()  # who connects is to be refused, not to wait for nobody
        await leaving
    finally:
        await _end(leaving, dying)
    return True


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _hear_signals(ending: Ending, hung_up: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.ask)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    if first_signals.hung_up():
        hung_up.set()


def _tell_people(settings: Settings, server: Serving) -> None:
    """What to try, on a terminal or in a demo."""
    is_for_people = sys.stdout.isatty() or settings.gpus.source == "simulated"
    if is_for_people:
        log.flush()  # another thread writes the lines: those that came first are to be read first
        with contextlib.suppress(OSError):  # nobody reads it
            say(_hint(settings, server.address), sys.stderr)


def _hint(settings: Settings, address: str) -> str:
    model = next(iter(settings.models), "")
    key = " -H 'Authorization: Bearer KEY'" if settings.server.api_keys else ""
    path = address.removeprefix("unix:")
    is_unix = path != address
    there = f"--unix-socket {path} http://localhost" if is_unix else address
    page = "" if is_unix else f"{address}/gateway/status, or: "
    return (
        f"\n  Try:     curl {there}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n"
        f'             -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}\'\n'
        f"  Status:  {page}vllm-gateway status --url {address}\n"
        "  Stop:    Ctrl-C\n"
    )
