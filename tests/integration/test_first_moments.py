# SPDX-License-Identifier: Apache-2.0
"""Signals that come before the gateway is ready: the end is quiet, and nobody dies of a reload."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from tests.waiting import LIMIT_S

# Something happens in the middle of importing a module.
_STRUCK = """
import os, signal, sys
class Strikes:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            exec(sys.argv[2])
sys.meta_path.insert(0, Strikes())
signal.signal(signal.SIGINT, signal.default_int_handler)  # as on a terminal, whatever the tests run in
from vllm_gateway.cli import main
sys.exit(main(sys.argv[3:]))
"""
MOMENTS = ["argparse", "vllm_gateway.configuration.settings", "uvloop", "vllm_gateway.service.lifetime"]


def struck(moment: str, number: signal.Signals, *arguments: str) -> list[str]:
    return happening(moment, f"os.kill(os.getpid(), {int(number)})", *arguments)


def happening(moment: str, what: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", _STRUCK, moment, what, *arguments]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "gateway.yaml"
    server = {"control_socket": str(tmp_path / "control.sock")}
    path.write_text(yaml.safe_dump({"server": server, "models": {"a": {"endpoints": ["http://127.0.0.1:1"]}}}))
    return str(path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_end_is_quiet(moment: str, number: signal.Signals, file: str) -> None:
    serve = struck(moment, number, "serve", "--config", file, "--port", "0")
    done = subprocess.run(serve, capture_output=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"gateway_ready" not in done.stdout


@pytest.mark.parametrize("moment", ["argparse", "vllm_gateway.configuration.settings"])
def test_ctrl_c_ends_other_commands_quietly(moment: str, file: str) -> None:
    check = struck(moment, signal.SIGINT, "check", "--config", file)
    done = subprocess.run(check, capture_output=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


async def until_said(process: asyncio.subprocess.Process, event: bytes) -> None:
    assert process.stdout is not None
    while event not in (line := await process.stdout.readline()):
        assert line, event


@asynccontextmanager
async def running(command: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        async with asyncio.timeout(LIMIT_S):
            await until_said(process, b"gateway_ready")
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(("moment", "reloads"), [("argparse", False), ("uvloop", True)])
async def test_a_reload_asked_for_once_the_file_was_read_comes_later(moment: str, reloads: bool, file: str) -> None:
    async with running(struck(moment, signal.SIGHUP, "serve", "--config", file, "--port", "0")) as process:
        if reloads:
            await until_said(process, b"config_reloaded")
        process.terminate()
        rest, _ = await process.communicate()
        assert process.returncode == 0
    assert b"gateway_stopped" in rest
    assert b"config_reloaded" not in rest


async def test_a_file_that_changes_once_it_was_read_is_read_again(file: str) -> None:
    with open(file, "a") as config:
        config.write("reload: watch\n")
    change = f"open({file!r}, 'a').write('queue_size: 5\\n')"
    async with running(happening("uvloop", change, "serve", "--config", file, "--port", "0")) as process:
        await until_said(process, b"config_reloaded")
