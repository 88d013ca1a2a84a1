# SPDX-License-Identifier: Apache-2.0
"""Signals that come before the gateway is ready: the end is quiet, and nobody dies of a reload."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.waiting import LIMIT_S

# Sends itself a signal in the middle of importing a module.
_STRUCK = """
import os, sys
class Strikes:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Strikes())
from vllm_gateway.cli import main
sys.exit(main(sys.argv[3:]))
"""
MOMENTS = ["argparse", "vllm_gateway.configuration.settings", "uvloop", "vllm_gateway.service.lifetime"]


def struck(moment: str, number: signal.Signals, *arguments: str) -> list[str]:
    return [sys.executable, "-c", _STRUCK, moment, str(int(number)), *arguments]


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


@pytest.mark.parametrize(("moment", "reloads"), [("argparse", False), ("uvloop", True)])
async def test_a_reload_asked_for_once_the_file_was_read_comes_later(moment: str, reloads: bool, file: str) -> None:
    serve = struck(moment, signal.SIGHUP, "serve", "--config", file, "--port", "0")
    process = await asyncio.create_subprocess_exec(*serve, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            while b"gateway_ready" not in await process.stdout.readline():
                pass
            if reloads:
                while b"config_reloaded" not in await process.stdout.readline():
                    pass
            process.terminate()
            rest = await process.stdout.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert b"gateway_stopped" in rest
    assert b"config_reloaded" not in rest
