# SPDX-License-Identifier: Apache-2.0
"""A gateway that listens: opened, handed over, and closed without cutting anything short."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from aiohttp import web

from vllm_gateway.api.front_door import FrontDoor
from vllm_gateway.app import Gateway
from vllm_gateway.configuration.settings import Gpus, Settings
from vllm_gateway.files.aside import aside
from vllm_gateway.service.accepting import Accepting
from vllm_gateway.service.descriptors import raise_limit, share_out
from vllm_gateway.service.ending import Ending
from vllm_gateway.service.handover import Predecessor
from vllm_gateway.service.leftovers import own_folder
from vllm_gateway.service.listening import bind, check_openness, port_of, url_of
from vllm_gateway.service.tls import TlsDoor
from vllm_gateway.service.tls import read as read_tls
from vllm_gateway.service.unix_sockets import unlink_own
from vllm_gateway.simulator.gpu_memory import SimulatedGpus
from vllm_gateway.telemetry import events

_ERROR_EVENTS_S = 5.0  # for the last words to reach their clients
_QUIET_S = 1.0  # where others take new connections: after this long without a request, the kept ones are closed
_CALLED_AGAIN_S = 2.0  # until whoever starts gateways has called the next one, and its code is loaded


class Serving:
    """A gateway that listens."""

    def __init__(
        self,
        gateway: Gateway,
        runner: web.ServerRunner,
        door: FrontDoor,
        sockets: list[socket.socket],
        *,
        ending: Ending,
        emit: Callable[..., None],
        outlived: bool,
    ) -> None:
        self.gateway = gateway
        self.took_over = False
        """From another one, whose place this one has."""
        self.outlived = outlived
        """By its sockets: systemd holds them, and new connections wait there for the next gateway."""
        self.opens_within_s = 0.0  # as this one did
        self._paths = [Path(one.getsockname()) for one in sockets if one.family == socket.AF_UNIX]
        self.port = port_of(sockets)
        self._runner = runner
        self._door = door
        self._sockets = sockets
        self._ending = ending
        self._has_successor = False
        self._drained_by: float | None = None
        self._emit: Callable[..., None] = emit
        self.tls = TlsDoor(door, emit)
        self.tls.configure(read_tls(gateway.settings.server.tls))
        self._accepting = Accepting(sockets, door, self.tls.let_in, most=1, emit=emit)
        self._share_out_descriptors(gateway.settings)

    @property
    def address(self) -> str:
        return url_of(self._sockets[0], is_https=self.tls.is_closed_to_plain)

    async def reconfigure(self, settings: Settings) -> None:
        """As the gateway does. Raises ConfigError too, before anything changed."""
        check_openness(self._sockets, settings.server)
        certificate = await aside(partial(read_tls, settings.server.tls))
        await self.gateway.reconfigure(settings)
        self.tls.configure(certificate)
        self._share_out_descriptors(settings)

    def _share_out_descriptors(self, settings: Settings) -> None:
        found = share_out(raise_limit(), settings)
        self._accepting.most = self.gateway.api.journal.metrics.connections_most = found.connections
        if found.limit < found.needed:
            self._emit(events.DESCRIPTORS_SHORT, limit=found.limit, needed=found.needed, connections=found.connections)

    def open(self) -> None:
        self._accepting.start()

    async def stop_accepting(self) -> None:
        """For good."""
        await self._accepting.stop()
        for one in self._sockets:
            one.close()

    async def give(self) -> Sequence[socket.socket]:
        """What a successor needs, once the fleet has come to rest. Raises CannotTakeOver."""
        await self.gateway.hand_over()
        return self._sockets

    def give_back(self) -> None:
        """To the gateway that was to be taken over, which goes on: its instances and its sockets' paths stay."""
        self._has_successor = True
        self.gateway.give_back()

    async def leave(self, limit_s: float) -> None:
        """After a hand-over; cut short when the end is asked for."""
        self._has_successor = True
        await self.finish(limit_s, self._ending.asked)

    def go_on(self) -> None:
        """As if there had been no hand-over: the successor has died."""
        self._has_successor = False
        self._drained_by = None
        self._door.leaving = False
        self.gateway.take_back()
        self.open()

    async def finish(self, limit_s: float, at_once: asyncio.Event) -> None:
        """Serves the connections there are, and tells each client to open a new one next time: others take it."""
        await self._accepting.stop()
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
        self.gateway.outputs.close()
        drained_by = self._drained_by or now + limit_s
        self._say_when_to_return(drained_by)
        ending = asyncio.create_task(self._end_at(drained_by))
        try:
            await self.stop_accepting()
            await self._runner.cleanup()
        finally:
            ending.cancel()
            await asyncio.wait({ending})
            if not (self.outlived or self._has_successor):
                self._remove_paths()

    def _remove_paths(self) -> None:
        """Of Unix sockets that nobody listens on any more."""
        for path in self._paths:
            with contextlib.suppress(OSError):
                unlink_own(path)

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
    """Raises OSError, ConfigError, ProbeError, RuntimeDown, StrategyError."""
    with _simulated_gpus(settings.gpus) as simulated:
        gateway = Gateway(settings, simulated, emit, predecessor)
        sockets = predecessor.sockets if predecessor else handed_in
        sockets = sockets or bind(settings.server)
        check_openness(sockets, settings.server)
        door = FrontDoor(gateway.api)
        limit_s = settings.server.drain_timeout_s
        runner = web.ServerRunner(door, handle_signals=False, shutdown_timeout=limit_s + _ERROR_EVENTS_S)
        await runner.setup()
        server = Serving(gateway, runner, door, sockets, ending=ending, emit=emit, outlived=bool(handed_in))
        server.took_over = predecessor is not None
        began = _now()
        try:
            if predecessor is None:
                server.open()  # /health is answered while the fleet opens
            await gateway.open()
            try:
                gateway.api.opened.set()
                if predecessor is not None:
                    server.open()  # not before it is sure that this one can serve
                server.opens_within_s = _now() - began
                yield server
            finally:
                await server.close(limit_s)
                await gateway.close()
        finally:
            gateway.inference.return_at = gateway.inference.return_at or _now()
            gateway.api.opened.set()  # whoever waits for a fleet that could not be opened
            await server.stop_accepting()
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
