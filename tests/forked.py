# SPDX-License-Identifier: Apache-2.0
"""Gateways that start at once: forked from a process that has imported what they need, which takes a core a second.

Run as a module this is that process. For each gateway it forks a keeper, which forks that and tells how it ended.
"""

import asyncio
import atexit
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

_MOST_BYTES = 1 << 17
_LIBRARIES = "LD_LIBRARY_PATH"
"""Read once, when a program is loaded: gateways with another one need another process to be forked from."""


class Forked:
    """A gateway that runs, as `asyncio.subprocess.Process` shows one; it dies with the process that asked for it."""

    def __init__(
        self, pid: int, stdout: asyncio.StreamReader, reading: asyncio.ReadTransport, keeper: socket.socket
    ) -> None:
        self.pid = pid
        self.stdout = stdout
        self._reading = reading
        self.returncode: int | None = None
        self._ended = asyncio.create_task(self._wait_for(keeper))

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Once nothing more is to be read; uvloop's pipes stay open at their end."""
        self._reading.close()

    async def _wait_for(self, keeper: socket.socket) -> int:
        with keeper:
            self.returncode = int(await asyncio.get_running_loop().sock_recv(keeper, 64))
        return self.returncode


async def start_gateway(arguments: Sequence[str], environment: Mapping[str, str], *, line_limit: int) -> Forked:
    """As `vllm-gateway ARGUMENTS` does."""
    loop = asyncio.get_running_loop()
    keeper, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.setblocking(False)
    read, write = os.pipe()
    with its_end:
        asked = json.dumps({"arguments": list(arguments), "environment": dict(environment), "folder": os.getcwd()})
        socket.send_fds(_parent(environment.get(_LIBRARIES)), [asked.encode()], [its_end.fileno(), write, 2])
        os.close(write)
    stdout = asyncio.StreamReader(limit=line_limit)
    reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdout), os.fdopen(read, "rb"))
    return Forked(int(await loop.sock_recv(keeper, 64)), stdout, reading, keeper)


@functools.cache
def _parent(libraries: str | None) -> socket.socket:
    """Of the gateways of this test process that have these libraries."""
    ours, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {key: value for key, value in os.environ.items() if key != _LIBRARIES}
    with its_end:
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(its_end.fileno())],
            pass_fds=[its_end.fileno()],
            env=environment | ({_LIBRARIES: libraries} if libraries is not None else {}),
        )

    def end() -> None:
        ours.close()
        parent.wait()

    atexit.register(end)
    return ours


def _serve(asking: socket.socket) -> list[str] | None:
    """Returns in each gateway, with its arguments, and at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    gc.freeze()
    while True:
        asked, descriptors, _, _ = socket.recv_fds(asking, _MOST_BYTES, 3)
        if not asked:
            return None
        if not os.fork():
            asking.close()
            return _keep(json.loads(asked), *descriptors)
        for one in descriptors:
            os.close(one)


def _keep(asked: dict[str, object], keeper: int, stdout: int, stderr: int) -> list[str]:
    """Returns in the gateway only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        return _become(stdout, stderr, keeper, **asked)  # type: ignore[arg-type]
    os.close(stdout)
    os.close(stderr)
    with socket.socket(fileno=keeper) as told, suppress(OSError):
        told.send(str(pid).encode())
        until = select.poll()
        until.register(told, select.POLLIN)
        until.register(os.pidfd_open(pid), select.POLLIN)
        if any(ready == keeper for ready, _ in until.poll()):  # who asked for it is gone
            os.kill(pid, signal.SIGKILL)
        told.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def _become(
    stdout: int, stderr: int, keeper: int, *, arguments: list[str], environment: dict[str, str], folder: str
) -> list[str]:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for one in (stdout, stderr, keeper):
        os.close(one)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return arguments


if __name__ == "__main__":
    import uvloop  # noqa: F401

    import vllm_gateway.service.lifetime  # noqa: F401
    from vllm_gateway.cli.main import main

    with socket.socket(fileno=int(sys.argv[1])) as asking:
        its_arguments = _serve(asking)
    if its_arguments is not None:
        sys.argv[1:] = its_arguments
        sys.exit(main())
