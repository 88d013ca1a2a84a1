# SPDX-License-Identifier: Apache-2.0
"""Workers that have left their engine's session end with the engine, whatever becomes of the gateway."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engines import children, engine_pids
from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import config, model
from tests.waiting import until

ENGINE = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        with open(os.environ["TELL"] + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(os.environ["TELL"] + ".part", os.environ["TELL"])
        os.execvp("sleep", ["sleep", "600"])
    os._exit(0)
os.wait()
os.execv(sys.executable, [sys.executable, "-m", "vllm_gateway.simulator", *sys.argv[1:]])
"""


UNMARKED = """
import os, subprocess, sys
worker = subprocess.Popen(["/bin/sleep", "600"], env={}, start_new_session=True, stdout=subprocess.DEVNULL)
with open(os.environ["TELL"], "w") as file:
    file.write(str(worker.pid))
os.execv(sys.executable, [sys.executable, "-m", "vllm_gateway.simulator", *sys.argv[1:]])
"""


def settings(folder: Path, script: str = ENGINE) -> dict[str, Any]:
    engine = folder / "engine.py"
    engine.write_text(script)
    one = model("a", instances=1)
    one["environment"] = {**one["environment"], "TELL": str(folder / "told")}
    return config(models={"a": one}, process={"command": [sys.executable, str(engine)]})


def worker_in(folder: Path) -> int:
    return int((folder / "told").read_text())


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def kill(gateway: GatewayProcess, *, guard: bool) -> None:
    if guard:
        (pid,) = set(children(gateway.process.pid)) - set(engine_pids(gateway.process.pid).values())
        os.kill(pid, signal.SIGKILL)
    gateway.process.kill()
    await gateway.process.wait()


async def test_they_end_with_an_engine_that_is_killed(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, settings(tmp_path)) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        worker = worker_in(tmp_path)
        (pid,) = engine_pids(gateway.process.pid).values()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not lives(worker))
        assert (await gateway.chat("a"))[0] == 200
        worker = worker_in(tmp_path)
        assert lives(worker)
    assert not lives(worker), "it has ended with the gateway"


@pytest.mark.parametrize("guard", [False, True])
async def test_they_end_with_a_gateway_that_is_killed_or_when_it_is_started_again(guard: bool, tmp_path: Path) -> None:
    """`guard`: it is killed as well."""
    async with running_gateway(tmp_path, settings(tmp_path), may_be_killed=True) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        worker = worker_in(tmp_path)
        await kill(gateway, guard=guard)
    if not guard:
        await until(lambda: not lives(worker))
        return
    async with running_gateway(tmp_path, settings(tmp_path)):
        assert not lives(worker)


@pytest.mark.parametrize("end", ["engine killed", "gateway stopped", "gateway killed"])
async def test_who_bears_no_mark_ends_with_an_engine_that_has_just_become_ready(end: str, tmp_path: Path) -> None:
    async with running_gateway(tmp_path, settings(tmp_path, UNMARKED), may_be_killed=True) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        worker = worker_in(tmp_path)
        assert lives(worker)
        if end == "gateway killed":
            await kill(gateway, guard=False)
        elif end == "engine killed":
            (pid,) = engine_pids(gateway.process.pid).values()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not lives(worker))
    await until(lambda: not lives(worker))
