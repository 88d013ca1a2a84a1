# SPDX-License-Identifier: Apache-2.0
"""How a new gateway takes over from a running one, so that a restart loses no request.

They talk over a unix socket, one JSON object a line:

    new -> old   "take over"
    old -> new   {"refused": why}, or {"refused": null} and with it the listening sockets. From here on the old one
                 decides nothing about instances, and both may accept connections.
    new -> old   "ready": it has adopted the instances and accepts connections. The old one stops to accept, and
                 serves the connections that it has.
    old -> new   again and again, what it still has to do, so that nothing is stopped under it:
                 {"in_flight": {instance: requests}, "waiting": {model: requests}}
    new -> old   whenever requests that wait for a model are to wait no longer:
                 {"model": name, "code": code, "message": why, "retry_after_s": seconds or null}
    new -> old   {"ends": true}: it ends as it should, or gives over to a third.

If the new one goes away before it is ready, the old one goes on as if nothing had been. If it dies later, while the old
one has still something to do, the old one accepts connections again, and decides again.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, cast

from vllm_gateway.fleet.predecessor import CannotTakeOver, Work
from vllm_gateway.routing import Refusal, not_served
from vllm_gateway.service.control_socket import ControlSocket
from vllm_gateway.service.unix_sockets import is_dead
from vllm_gateway.telemetry import events

REPORT_S = 0.1
LIMIT_S = 120.0  # for the old one to come to rest, and for the new one to become ready
ALIVE_S = 1.0
SILENT_S = 20.0  # without a word, of one that has said that it is alive, or what it still has to do
FIRST_WORD_S = 40.0  # from one that says only that it is ready, as the release before
ACCEPTED_S = 5.0
OPEN_AGAIN_S = 5.0  # where the socket could not be made: until that is tried again
PEER_S = 5.0  # for whoever connects to say what it wants
_DIES_LOOKS = 100  # from the end of its connection to that of its control socket, of one that dies
_LOOK_S = 0.02
_MOST_PEERS = 8
_ACCEPT_AGAIN_S = 1.0
_SOMEBODY_ELSES = "it belongs to another user"
_TAKE_OVER = "take over"
_ALIVE = "alive"
_READY = "ready"
_MOST_SOCKETS = 16
_LONGEST_LINE = 1 << 20


class Successor:
    """The old one's side: waits for somebody to take over."""

    def __init__(
        self,
        control: ControlSocket,
        emit: Callable[..., None],
        *,
        give: Callable[[], Awaitable[Sequence[socket.socket]]],
        take_back: Callable[[], None],
        work: Callable[[], Work],
        refuse: Callable[[str, Refusal], None],
    ) -> None:
        """`give` comes to rest and returns the listening sockets; raises CannotTakeOver.

        `refuse` ends the requests that wait for a model.
        """
        self._control = control
        self._emit: Callable[..., None] = emit
        self._listening: socket.socket | None = None
        self._give = give
        self._take_back = take_back
        self._work = work
        self._refuse = refuse
        self._silent: dict[asyncio.Task[None], None] = {}  # who have not said yet what they want, in their order
        self._giving: asyncio.Task[None] | None = None  # to whoever takes over
        self._successor: tuple[socket.socket, _Lines] | None = None
        self._ends = False
        self._hangs_up = asyncio.Event()  # the one that has come, or it ends

    @property
    def has_come(self) -> bool:
        return self._successor is not None

    def open(self) -> bool:
        """Whether it listens now. What is wrong is told."""
        self._listening = self._control.open()
        return self._listening is not None

    def close(self) -> None:
        """The socket's path belongs to the successor once there is one."""
        if self._listening is not None:
            self._listening.close()
            if not self.has_come:
                self._control.remove()

    async def come(self) -> None:
        """Returns when a successor is ready. Peers are heard side by side: one that is silent holds nobody up."""
        loop = asyncio.get_running_loop()
        while self._listening is None:
            await asyncio.sleep(OPEN_AGAIN_S)
            self.open()
        taken = asyncio.Event()
        accepting = loop.create_task(self._accept(self._listening, taken))
        try:
            await taken.wait()
        finally:
            tasks = {accepting, *self._silent, *filter(None, [self._giving])}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _accept(self, listening: socket.socket, taken: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError:  # no descriptor is left for it
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            if len(self._silent) >= _MOST_PEERS:
                next(iter(self._silent)).cancel()  # who has said nothing for longest
            task = loop.create_task(self._hear_peer(connection, taken))
            self._silent[task] = None
            task.add_done_callback(lambda task: self._silent.pop(task, None))

    async def _hear_peer(self, connection: socket.socket, taken: asyncio.Event) -> None:
        lines = _Lines(connection)
        try:
            connection.setblocking(False)
            async with asyncio.timeout(PEER_S):
                if not _is_trusted(connection) or await lines.next() != _TAKE_OVER:
                    return
                if self._giving is not None:
                    await _send(connection, {"refused": "another gateway is taking over right now; try again later"})
                    return
            if await self._hand_over(connection, lines):
                self._successor = connection, lines
                self._emit(events.GATEWAY_HANDED_OVER)
                taken.set()
        except (OSError, TimeoutError, ValueError):
            pass
        finally:
            if self._successor is None or self._successor[0] is not connection:
                connection.close()

    async def report(self) -> None:
        """To the one that has come, and hears of it, as long as this process lives."""
        assert self._successor is not None
        connection, lines = self._successor
        await asyncio.gather(self._report(connection, accepted=True), self._hear(lines))

    async def died(self) -> bool:
        """Returns once the one that has come ends: whether nobody serves in its place. Needs `report`."""
        await self._hangs_up.wait()
        for _ in range(_DIES_LOOKS):
            if self._ends or self._is_nobody_there():
                return not self._ends
            await asyncio.sleep(_LOOK_S)
        return False

    def _is_nobody_there(self) -> bool:
        """Whoever has taken over listens where this one could, and so does whoever took over from it."""
        for path in self._control.paths:
            with contextlib.suppress(OSError):
                if path.stat().st_uid == os.getuid() and not is_dead(path):
                    return False
        return True

    async def _hear(self, lines: "_Lines") -> None:
        try:
            while not self._ends and (said := await lines.next()) is not None:
                self._ends = bool(said.get("ends"))
                if "model" in said:
                    self._refuse(said["model"], Refusal(said["code"], said["message"], said["retry_after_s"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # it is gone, or speaks another language
        finally:
            self._hangs_up.set()

    async def _hand_over(self, connection: socket.socket, lines: "_Lines") -> bool:
        """Whether it is ready. If it is not, or this fails, all is as before."""
        self._giving = cast("asyncio.Task[None]", asyncio.current_task())
        self._silent.pop(self._giving, None)
        try:
            async with asyncio.timeout(LIMIT_S):
                if await self._offer(connection, lines):
                    return True
        except (CannotTakeOver, TimeoutError) as error:
            self._take_back()
            why = str(error) or "it was not told in time that the new one is alive and becomes ready"
            async with asyncio.timeout(ACCEPTED_S):
                await _send(connection, {"refused": why})
        except Exception:
            self._take_back()
            raise
        else:
            self._take_back()
        finally:
            self._giving = None
        return False

    async def _offer(self, connection: socket.socket, lines: "_Lines") -> bool:
        sockets = await self._give()
        socket.send_fds(connection, [_line({"refused": None, "hears": True})], [one.fileno() for one in sockets])
        reporting = asyncio.create_task(self._report(connection, accepted=False))
        try:
            return await self._is_ready(lines)
        finally:
            reporting.cancel()
            await asyncio.wait({reporting})

    @staticmethod
    async def _is_ready(lines: "_Lines") -> bool:
        """False: it is gone. Raises TimeoutError."""
        said, limit_s = _ALIVE, FIRST_WORD_S
        while said == _ALIVE:
            async with asyncio.timeout(limit_s):
                said = await lines.next()
            limit_s = SILENT_S
        return bool(said == _READY)

    async def _report(self, connection: socket.socket, *, accepted: bool) -> None:
        """Until it is cancelled, or the other side is gone. The connection ends with the process."""
        with contextlib.suppress(OSError):
            while True:
                work = self._work()
                said = {"in_flight": work.in_flight, "waiting": work.waiting, "accepted": accepted}
                await _send(connection, said)
                await asyncio.sleep(REPORT_S)


class Predecessor:
    """The new one's side. `work` is what the old one still has to do; nothing once it is gone, or has fallen silent."""

    def __init__(
        self, connection: socket.socket, lines: "_Lines", sockets: list[socket.socket], *, hears: bool
    ) -> None:
        """`hears`: that this one is alive, and says whether it has accepted it."""
        self._connection = connection
        self._lines = lines
        self._hears = hears
        self.sockets = sockets
        self.work = Work()
        self.heard: Callable[[], None] = lambda: None
        self.gone = False
        self._is_told = False  # that this one is ready
        self._refused: str | None = None  # after all
        self._settled = asyncio.Event()  # this one is accepted, or refused, or nobody is there to say so

    @classmethod
    async def find(cls, control: ControlSocket) -> "Predecessor | None":
        """None: no gateway is there, or nothing but what belongs to somebody else. Raises CannotTakeOver."""
        for path in control.paths:
            try:
                if path.stat().st_uid not in (0, os.getuid()):
                    raise PermissionError(_SOMEBODY_ELSES)
                if found := await cls._ask(path):
                    return found
            except (FileNotFoundError, NotADirectoryError):
                pass
            except PermissionError as error:
                control.tell(path, error)
        return None

    @classmethod
    async def _ask(cls, path: Path) -> "Predecessor | None":
        """None: no gateway is there. Raises PermissionError, CannotTakeOver."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            async with asyncio.timeout(LIMIT_S):
                try:
                    await asyncio.get_running_loop().sock_connect(connection, str(path))
                except (FileNotFoundError, ConnectionRefusedError):
                    connection.close()
                    return None
                if not _is_trusted(connection):
                    raise PermissionError(_SOMEBODY_ELSES)
                await _send(connection, _TAKE_OVER)
                lines = _Lines(connection)
                answer, sockets = await lines.next_with_sockets()
                if answer["refused"] is not None:
                    connection.close()
                    raise CannotTakeOver(answer["refused"])
                found = cls(connection, lines, sockets, hears=bool(answer.get("hears")))
                await found._hear()
        except PermissionError:
            connection.close()
            raise
        except (OSError, TimeoutError, ValueError) as error:
            connection.close()
            raise CannotTakeOver(f"the gateway at {path} does not answer: {error!r}") from error
        return found

    async def say_alive(self) -> None:
        """Until it is told that this one is ready."""
        with contextlib.suppress(OSError):
            while self._hears and not (self._is_told or self._settled.is_set()):
                await _send(self._connection, _ALIVE)
                await asyncio.sleep(ALIVE_S)

    async def say_ready(self) -> None:
        """Raises CannotTakeOver: it has given up on this one, and goes on."""
        self._is_told = True
        with contextlib.suppress(OSError, TimeoutError):
            await _send(self._connection, _READY)
            if self._hears:
                async with asyncio.timeout(ACCEPTED_S):
                    await self._settled.wait()
        if self._refused is not None:
            raise CannotTakeOver(f"the gateway that runs goes on: {self._refused}")

    def refuse(self, model: str, refusal: Refusal) -> None:
        """Ends the old one's requests that wait for `model`, if there are any, and it hears of that yet."""
        if self._is_told and self.work.waiting.get(model):
            said = {"code": refusal.code, "message": refusal.message, "retry_after_s": refusal.retry_after_s}
            with contextlib.suppress(OSError):  # it is gone, or hears it the next time
                self._connection.send(_line({"model": model, **said}))

    def say_end(self) -> None:
        """Of this one, which dies not: who was taken over leaves the address to whoever comes next."""
        with contextlib.suppress(OSError):  # it is gone
            self._connection.send(_line({"ends": True}))

    async def _hear(self) -> bool:
        """Takes the next report; False: there is none any more. Raises TimeoutError."""
        async with asyncio.timeout(SILENT_S):
            report = await self._lines.next()
        if report is None:
            return False
        if (refused := report.get("refused")) is not None:
            self._refused = refused
            return False
        self.work, self.gone = Work(report["in_flight"], report["waiting"]), False
        self.heard()
        if report.get("accepted"):
            self._settled.set()
        return True

    async def follow(self, served: Collection[str]) -> None:
        """Until the old one is gone. Who waits there for a model that is not `served` any more is told so."""
        try:
            while True:
                try:
                    if not await self._hear():
                        break
                except TimeoutError:
                    self._is_gone()  # or stands still: what it had to do is kept up no longer
                for model in self.work.waiting.keys() - served:
                    self.refuse(model, not_served(model))
        except (OSError, ValueError, KeyError, AttributeError):
            pass  # whatever it was, there is nothing more to be heard
        finally:
            self._is_gone()
            self._settled.set()
            self._connection.close()

    def _is_gone(self) -> None:
        self.work = Work()
        self.gone = True
        self.heard()


class _Lines:
    """JSON values as they come, one a line; None at the end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    async def next(self) -> Any:
        loop = asyncio.get_running_loop()
        while b"\n" not in self._buffer:
            data = await loop.sock_recv(self._connection, 65536)
            if not data:
                return None
            self._buffer += data
            if len(self._buffer) > _LONGEST_LINE:
                raise ValueError("a line too long")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def next_with_sockets(self) -> tuple[Any, list[socket.socket]]:
        """The sockets come with the line's first byte."""
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._connection, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._connection)
        data, numbers, _, _ = socket.recv_fds(self._connection, 65536, _MOST_SOCKETS)
        self._buffer += data
        sockets = [socket.socket(fileno=number) for number in numbers]
        for one in sockets:
            one.set_inheritable(False)
        return await self.next(), sockets


def _is_trusted(connection: socket.socket) -> bool:
    """Whether the other side runs as the same user, or as root."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.getuid())


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


async def _send(connection: socket.socket, value: object) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, _line(value))
