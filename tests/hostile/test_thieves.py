# SPDX-License-Identifier: Apache-2.0
"""Other processes of the machine that stand where an engine should: no byte of a request comes to them."""

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.engines import engine_pids, session
from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import FAST, config, model
from vllm_gateway.fleet.runtimes.listener import pids_of_session

# Takes the port of the first engine that it sees on a command line, long before the engine listens there.
SLOW_START = {**FAST, "SIM_LOAD_S": "1"}
ON_A_PORT = config(models={"a": model("a", environment=SLOW_START)}, engine_address="port")


class Thief:
    """Answers as the engine would, and keeps all that it is sent."""

    def __init__(self) -> None:
        self.address = ""
        self.heard = b""
        self.connections = 0
        self._server: asyncio.Server | None = None

    async def steal_from(self, gateway: GatewayProcess) -> None:
        while not (found := engine_pids(gateway.process.pid)):
            await asyncio.sleep(0.005)
        await self.listen(*found)

    async def listen(self, address: str) -> None:
        self.address = address
        host, port = address.split(":")
        self._server = await asyncio.start_server(self._serve, host, int(port))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        body = b'{"data": [{"id": "a"}], "choices": []}'
        while data := await reader.read(65536):
            self.heard += data
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()


@asynccontextmanager
async def a_thief() -> AsyncIterator[Thief]:
    thief = Thief()
    try:
        yield thief
    finally:
        await thief.close()


async def test_who_takes_an_engines_port_first_gets_nothing(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, ON_A_PORT) as gateway, a_thief() as thief:
        stealing = asyncio.create_task(thief.steal_from(gateway))
        status, _, said = await gateway.chat("a")
        await stealing
        assert (status, said["error"]["code"]) == (503, "model_start_failed")
        assert "address already in use" in " ".join((await gateway.event("instance_failed"))["log_tail"])
        async with gateway.http.post("/gateway/models/a/retry") as reply:
            assert reply.status == 200
        status, headers, _ = await gateway.chat("a")
        assert (status, headers["x-simulated-instance"]) == (200, "vllm_server_a_instance_1")
        (one,) = (await gateway.status())["active_containers_by_name"].values()
        assert one["address"] != thief.address
        assert (thief.connections, thief.heard) == (0, b"")


async def test_who_takes_a_dead_engines_port_gets_nothing(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, ON_A_PORT) as gateway, a_thief() as thief:
        await gateway.chat("a")
        ((address, pid),) = engine_pids(gateway.process.pid).items()
        asked = [asyncio.create_task(gateway.chat("a")) for _ in range(8)]
        os.kill(pid, 9)
        while not thief.address:
            try:
                await thief.listen(address)
            except OSError:  # the engine is about to end
                thief.address = ""
                await asyncio.sleep(0)
        asked += [asyncio.create_task(gateway.chat("a")) for _ in range(8)]
        assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
        assert thief.heard == b""


async def test_an_engine_on_a_port_wants_a_key(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, ON_A_PORT) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        ((address, pid),) = engine_pids(gateway.process.pid).items()
        body = {"model": "a", "prompt": "x", "max_tokens": 1}
        async with session(address) as http, http.post("/v1/completions", json=body) as reply:
            assert reply.status == 401
        environment = dict(one.partition("=")[::2] for one in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        shown = str(await gateway.status()) + str(gateway.lines)
        assert len(environment["VLLM_API_KEY"]) == 64
        assert environment["VLLM_API_KEY"] not in shown
        kept = tmp_path / "state" / "engines.key"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


async def test_by_default_no_engine_has_a_port_and_no_other_user_reaches_it(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(models={"a": model("a")})) as gateway:
        await gateway.chat("a")
        ((address, pid),) = engine_pids(gateway.process.pid).items()
        (one,) = (await gateway.status())["active_containers_by_name"].values()
        assert one["address"] == address
        assert stat.S_IMODE(Path(address).parent.stat().st_mode) == 0o700
        assert not listening_on_tcp(pids_of_session(pid))
        if os.getuid() == 0:
            assert await connects_as_somebody_else(address) == "PermissionError"
    assert not Path(address).parent.exists()


def listening_on_tcp(pids: frozenset[int]) -> set[str]:
    tables = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
    listening = {line.split()[9] for lines in tables for line in lines if line.split()[3] == "0A"}
    targets = {str(one.readlink()) for pid in pids for one in Path(f"/proc/{pid}/fd").iterdir()}
    return {inode for inode in listening if f"socket:[{inode}]" in targets}


async def connects_as_somebody_else(path: str) -> str:
    """The name of the error, empty if it connects."""
    script = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
        "except OSError as error: print(type(error).__name__, end='')"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-c", script, path), stdout=asyncio.subprocess.PIPE
    )
    return (await process.communicate())[0].decode()


@pytest.mark.parametrize("address", ["socket", "port"])
async def test_an_engine_that_serves_another_model_gets_no_request(address: str, tmp_path: Path) -> None:
    """A command of the operator's that does not do as it is told, or another program altogether."""
    script = (
        "import sys; from vllm_gateway.simulator.__main__ import main;"
        "at = sys.argv.index('--served-model-name'); sys.argv[at + 1] = 'b'; sys.exit(main())"
    )
    process = {"command": [sys.executable, "-c", script]}
    settings = config(models={"a": model("a")}, process=process, engine_address=address)
    async with running_gateway(tmp_path, settings) as gateway:
        asking = asyncio.create_task(gateway.chat("a"))
        failed = await gateway.event("instance_failed")
        assert "the engine serves b, not a" in failed["reason"]
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
