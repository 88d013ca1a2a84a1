# SPDX-License-Identifier: Apache-2.0
"""An upgrade with engines that are child processes: nothing is lost by trying, and what was measured stays known."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.integration.test_gateway import config, engines_of, model
from tests.integration.test_take_over import taking_over
from tests.load import Load
from tests.upgrade.releases import Releases
from tests.waiting import LIMIT_S


@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
async def test_a_take_over_is_refused_and_what_is_measured_stays_known(upwards: bool, releases: Releases) -> None:
    models = {"a": model("a-4b", footprint_mib=None), "b": model("b")}
    both = replace(releases, settings=config(gpu_mib=40_000, models=models))
    first, second = (both.old, both.new) if upwards else (both.new, both.old)
    async with first() as gateway:
        assert (await gateway.chat("a"))[0] == 200
        measured = (await gateway.event("footprint_measured", model="a"))["footprint_mib"]
        engines = engines_of(gateway.process.pid)
        load = Load(gateway.url)
        command = [sys.executable, "-m", "vllm_gateway.cli", "serve", "--config", str(gateway.file)]
        sources = {"PYTHONPATH": str(both.previous / "src")} if not upwards else {}
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, *taking_over(gateway)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env={**os.environ, **both.environment, **sources},
        )
        assert done.returncode == 1
        assert "child processes" in done.stderr
        await load.more(10)
        await load.end()
        assert not load.failures
        assert engines_of(gateway.process.pid) == engines
        assert (await gateway.chat("b"))[0] == 200, "it decides as before"
    async with second() as gateway:
        assert list((await gateway.status())["known_footprints_mib"].values()) == [measured]
        assert (await gateway.chat("a"))[0] == 200
        assert not gateway.events("footprint_measured")
