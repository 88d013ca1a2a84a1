# SPDX-License-Identifier: Apache-2.0
"""A real gateway process for tests: started as by its command, read by its log, ended in every case."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.forked import Forked, start_gateway
from tests.waiting import LIMIT_S, until
from vllm_gateway.telemetry.events import validate

CHAT = "/v1/chat/completions"
_LINE_LIMIT = 1 << 20

# As systemd does it: the sockets are number 3, 4, ..., and the process that execs is the one that LISTEN_PID names.
LIKE_SYSTEMD = """
import fcntl, os, sys
aside = [fcntl.fcntl(int(one), fcntl.F_DUPFD_CLOEXEC, 100) for one in sys.argv[1].split(",")]
os.closerange(3, 100)
for number, one in enumerate(aside, 3):
    os.dup2(one, number)
os.environ.update(LISTEN_FDS=str(len(aside)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="http")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:3])))
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


class GatewayProcess:
    """`lines` holds every decoded log line so far; `problems` what was wrong with them by the table of events."""

    def __init__(
        self,
        process: Forked | asyncio.subprocess.Process,
        file: Path,
        problems_of: Callable[[Mapping[str, Any]], Sequence[str]] = validate,
    ) -> None:
        """`problems_of`: what is wrong with a line of its log."""
        self.process = process
        self.file = file
        self._problems_of = problems_of
        self.lines: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.url = ""
        self.http: aiohttp.ClientSession
        self._news = asyncio.Event()

    async def read_log(self) -> None:
        assert self.process.stdout is not None
        while raw := await self.process.stdout.readline():
            try:
                line = json.loads(raw)
            except ValueError:
                self.problems.append(f"not JSON: {raw!r}")
                continue
            self.problems += self._problems_of(line)
            self.lines.append(line)
            self._news.set()

    def events(self, name: str, **fields: object) -> list[dict[str, Any]]:
        found = [line for line in self.lines if line["event"] == name]
        return [line for line in found if all(line.get(key) == value for key, value in fields.items())]

    async def event(self, name: str, limit_s: float = LIMIT_S, count: int = 1, **fields: object) -> dict[str, Any]:
        """Waits for the log to hold `count` such lines."""
        async with asyncio.timeout(limit_s):
            while len(found := self.events(name, **fields)) < count:
                self._news.clear()
                await self._news.wait()
        return found[count - 1]

    async def status(self) -> dict[str, Any]:
        async with self.http.get("/gateway/status") as reply:
            page: dict[str, Any] = await reply.json()
            return page

    async def until(self, condition: Callable[[dict[str, Any]], bool], limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Waits until the status page fulfils `condition`."""
        page: dict[str, Any] = {}

        async def fulfilled() -> bool:
            nonlocal page
            page = await self.status()
            return condition(page)

        try:
            await until(fulfilled, limit_s)
        except TimeoutError:
            raise AssertionError(json.dumps(page, indent=1)) from None
        return page

    async def chat(self, model: str, **more: object) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **more}
        async with self.http.post(CHAT, json=body) as reply:
            return reply.status, reply.headers, await reply.json()


def _no_problems(_: Mapping[str, Any]) -> Sequence[str]:
    """Another release has events of its own."""
    return ()


async def _loaded_with(
    handed_in: Sequence[socket.socket],
    open_files: tuple[int, int] | None,
    command: Sequence[str],
    environment: Mapping[str, str],
) -> asyncio.subprocess.Process:
    """A program of its own, as systemd and shells start it."""
    command = ["-m", "vllm_gateway.cli", *command]
    numbers = [one.fileno() for one in handed_in]
    if numbers:
        command = ["-c", LIKE_SYSTEMD, ",".join(map(str, numbers)), *command]
    if open_files is not None:
        command = ["-c", _LIMITED, *map(str, open_files), *command]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=numbers,
        env=environment,
        limit=_LINE_LIMIT,
    )


@asynccontextmanager
async def running_gateway(
    folder: Path,
    config: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    *,
    may_be_killed: bool = False,
    arguments: Sequence[str] = (),
    handed_in: Sequence[socket.socket] = (),
    open_files: tuple[int, int] | None = None,
    release: Path | None = None,
    reply_limit_s: float = 2 * LIMIT_S,
) -> AsyncIterator[GatewayProcess]:
    """Serves `config` on a free port of 127.0.0.1 until the block ends; then it must end cleanly by SIGTERM.

    `arguments` are added to the command, and win. `handed_in`: sockets that it gets as from systemd.
    `open_files`: how many it may open, the soft limit and the hard one. `release`: the sources of another one.
    `reply_limit_s`: how long the client waits for each reply to be whole.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "gateway.yaml"
    kept = {"memory_footprint_file": str(folder / "footprints.json")}
    environment = {**os.environ, "LOG_LEVEL": "debug", **(environment or {})}
    if "XDG_STATE_HOME" not in environment:
        kept["state_dir"] = str(folder / "state")
    file.write_text(yaml.safe_dump({**kept, **config}), encoding="utf-8")
    command = ["serve", "--config", str(file), "--port", "0", *arguments]
    process: Forked | asyncio.subprocess.Process
    if release:
        process = await _loaded_with((), None, command, {**environment, "PYTHONPATH": str(release)})
    elif handed_in or open_files:
        process = await _loaded_with(handed_in, open_files, command, environment)
    else:
        process = await start_gateway(command, environment, line_limit=_LINE_LIMIT)
    gateway = GatewayProcess(process, file, _no_problems if release else validate)
    reader = asyncio.create_task(gateway.read_log())
    try:
        gateway.url = (await gateway.event("gateway_ready"))["address"]
        unix = gateway.url.removeprefix("unix:") if gateway.url.startswith("unix:") else None
        async with aiohttp.ClientSession(
            "http://localhost" if unix else gateway.url,
            connector=aiohttp.UnixConnector(unix) if unix else None,
            timeout=aiohttp.ClientTimeout(total=reply_limit_s),
        ) as gateway.http:
            yield gateway
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(LIMIT_S):
            status = await process.wait()
            assert status == 0 or (may_be_killed and status == -signal.SIGKILL), status
            await reader
        assert not gateway.problems, gateway.problems
        assert not gateway.events("unhandled_error"), gateway.events("unhandled_error")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        if isinstance(process, Forked):
            process.close()
