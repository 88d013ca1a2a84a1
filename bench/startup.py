# SPDX-License-Identifier: Apache-2.0
"""How long the gateway takes from the start of its process to its first answer, and how much of that are imports."""

import subprocess
import tempfile
import time
from pathlib import Path

from bench.measure import Bench
from bench.processes import Address, NotServing, free_port, get_status, last_words, running
from bench.results import Measured, Results, Sample
from bench.targets import Gateway

_LIMIT_S = 30.0


def run(bench: Bench, gateway: Gateway) -> Results:
    measured = Measured()
    _sample(bench, gateway)  # so that the files are in memory
    for _ in range(bench.rounds):
        try:
            measured.samples.append(_sample(bench, gateway))
        except (NotServing, subprocess.SubprocessError) as error:
            measured.failed = str(error)
            break
    bench.say("start: done")
    return Results(rounds=bench.rounds, seconds=bench.seconds, rows={"start": {gateway.name: measured}})


def _sample(bench: Bench, gateway: Gateway) -> Sample:
    python = gateway.command.with_name("python")
    bare_s = _seconds_of([str(python), "-c", "pass"], bench)
    imports_s = _seconds_of([str(python), "-c", "import uvloop, vllm_gateway.app, vllm_gateway.configuration"], bench)
    return {"health_s": _until_healthy(bench, gateway), "import_s": imports_s - bare_s, "interpreter_s": bare_s}


def _until_healthy(bench: Bench, gateway: Gateway) -> float:
    folder = Path(tempfile.mkdtemp(prefix="start-", dir=bench.folder))
    address = Address("127.0.0.1", free_port())
    launch = gateway.launch(folder, address.port, bench.backends)
    log = folder / "output.log"
    began = time.monotonic()
    with running(launch.argv, cores=str(bench.cores.proxy), log=log, environment=launch.environment):
        while get_status(address, launch.health) != 200:
            if time.monotonic() - began > _LIMIT_S:
                raise NotServing(f"no answer: {last_words(log)}")
            time.sleep(0.002)
        return time.monotonic() - began


def _seconds_of(argv: list[str], bench: Bench) -> float:
    began = time.monotonic()
    subprocess.run(["taskset", "-c", str(bench.cores.proxy), *argv], check=True)
    return time.monotonic() - began
