# SPDX-License-Identifier: Apache-2.0
"""Sockets that systemd holds: served, kept over restarts, handed over, and no business of engines."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.engines import engine_pids, engines_of_somebody_else
from tests.gateway import LIKE_SYSTEMD, running_gateway
from tests.integration.test_gateway import FAST, config, model
from tests.integration.test_take_over import ended, folder_of
from tests.load import Load
from tests.waiting import LIMIT_S
from vllm_gateway.service import listening as listening_module
from vllm_gateway.service.listening import inherited


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()
    return f"http://{host}:{port}"


async def test_every_socket_is_served_and_engines_get_none(listening: socket.socket, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        async with running_gateway(tmp_path, config(models={"a": model("a")}), handed_in=[listening, other]) as gateway:
            assert gateway.url == url_of(listening)
            assert (await gateway.chat("a"))[0] == 200
            async with aiohttp.ClientSession() as http, http.get(f"{url_of(other)}/health") as reply:
                assert reply.status == 200
            (engine,) = engine_pids(gateway.process.pid).values()
            held = {os.readlink(one) for one in Path(f"/proc/{engine}/fd").iterdir()}
            assert not held & {f"socket:[{os.fstat(one.fileno()).st_ino}]" for one in (listening, other)}
            assert b"LISTEN_" not in Path(f"/proc/{engine}/environ").read_bytes()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_one_that_others_reach_is_not_served_without_keys(host: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump(config()), "utf-8")
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        number = listening.fileno()
        command = [
            sys.executable,
            "-c",
            LIKE_SYSTEMD,
            str(number),
            "-m",
            "vllm_gateway.cli",
            "serve",
            "--config",
            str(file),
        ]
        ended = subprocess.run(command, pass_fds=[number], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 1
    assert f"http://{f'[{host}]' if ':' in host else host}:" in ended.stderr
    assert "add the line `open: true` under `server:`" in ended.stderr


async def test_nor_does_it_lose_its_keys_while_it_is_served(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listening:
        settings = config(server={"api_keys": ["k"]})
        async with running_gateway(tmp_path, settings, handed_in=[listening]) as gateway:
            gateway.file.write_text(yaml.safe_dump({**config(), "server": {}}), "utf-8")
            gateway.process.send_signal(signal.SIGHUP)
            failed = await gateway.event("config_reload_failed")
            assert "add the line `open: true` under `server:`" in failed["problems"][0]
            async with gateway.http.get("/v1/models") as reply:
                assert reply.status == 401
            gateway.file.write_text(yaml.safe_dump({**config(), "server": {"open": True}}), "utf-8")
            gateway.process.send_signal(signal.SIGHUP)
            await gateway.event("config_reloaded")
            async with gateway.http.get("/v1/models") as reply:
                assert reply.status == 200


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        async with engines_of_somebody_else("a", 2, FAST) as addresses:
            settings = {"runtime": "process", "models": {"a": {"endpoints": addresses}}}
            arguments = ["--port", "8123"]  # which nobody listens on
            async with running_gateway(
                folder_of(tmp_path, "0"), settings, handed_in=[listening], arguments=arguments
            ) as gateway:
                assert gateway.url == f"unix:{path}"
                assert (await gateway.chat("a"))[0] == 200


async def test_a_restart_loses_no_connection(listening: socket.socket, tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 2, FAST) as addresses:
        settings = {"runtime": "process", "models": {"a": {"endpoints": addresses}}}
        load = Load(url_of(listening), keep=False)
        for number in range(3):
            async with running_gateway(folder_of(tmp_path, str(number)), settings, handed_in=[listening]):
                await load.more(20)
        async with running_gateway(folder_of(tmp_path, "last"), settings, handed_in=[listening]):
            await load.more(20)
            await load.end()
        assert not load.failures


async def test_it_is_handed_over_whatever_port_is_configured(listening: socket.socket, tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 2, FAST) as addresses:
        settings = {"runtime": "process", "models": {"a": {"endpoints": addresses}}}
        async with running_gateway(folder_of(tmp_path, "0"), settings, handed_in=[listening]) as first:
            await first.until(lambda page: page["models"]["a"]["running"] == 2)
            load = Load(first.url)
            await load.more(20)
            async with running_gateway(
                folder_of(tmp_path, "1"), settings, handed_in=[listening], arguments=["--take-over"]
            ) as second:
                assert second.url == first.url
                await ended(first)
                await load.more(20)
                await load.end()
                assert not load.failures


def test_a_socket_that_does_not_listen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as connection:
        monkeypatch.setattr(listening_module, "_FIRST_INHERITED", os.dup(connection.fileno()))
    with pytest.raises(OSError, match="ListenStream"):
        inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    assert inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
