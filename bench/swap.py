# SPDX-License-Identifier: Apache-2.0
"""Two models that do not fit together, both asked for all the time: requests served with and without a quantum.

    python -m bench.swap [--seconds 60] [--quantum 5 10] [--load 2] [--request 0.3] [--wake 0.2]

Each also with sleep in place of stops and starts; and what a single request waits for a swap, without and with sleep.

Needs no GPU: the process runtime with the simulated engine, one simulated GPU that has room for one of the models.
Each model has as many clients as its engine has places, and each client sends its next request as soon as it has the
answer to the last: what is served is all that the policy can serve. Both policies are held to the same bound on p99:
the quantum and three loads, of which a client whose model has just lost its turn needs two.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from tests.gateway import GatewayProcess, running_gateway

CLIENTS = 8  # of each model, and places
LOADS_IN_BOUND = 3


@dataclass(frozen=True, slots=True)
class Engines:
    load_s: float
    request_s: float
    wake_s: float


def config(min_resident_s: float, engines: Engines, sleep: str) -> Mapping[str, object]:
    environment = {
        "SIM_LOAD_S": str(engines.load_s),
        "SIM_TTFT_S": str(engines.request_s),
        "SIM_WAKE_S": str(engines.wake_s),
        "SIM_WEIGHTS_MIB": "2000",
    }
    model = {
        "environment": environment,
        "repository": "test/model",
        "footprint_mib": 6000,
        "max_in_flight": CLIENTS,
        "sleep": sleep,
    }
    gpus = {"source": "simulated", "devices": [{"name": "Simulated GPU", "memory_mib": 10_000}], "margin_mib": 0}
    return {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {**gpus, "min_resident_s": min_resident_s},
        "models": {"a": model, "b": model},
        "host_memory_mib": 32_000,
        "log": {"level": "info"},
    }


async def client(gateway: GatewayProcess, model: str, until: float, seconds: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while (began := loop.time()) < until:
        status, _, _ = await gateway.chat(model, max_tokens=1)
        assert status == 200, status
        seconds.append(loop.time() - began)


async def run(name: str, settings: Mapping[str, object], length_s: float) -> tuple[float, float]:
    """Requests served per minute, and the p99 of their time."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_gateway(Path(folder), settings) as gateway:
            seconds: list[float] = []
            until = asyncio.get_running_loop().time() + length_s
            await asyncio.gather(*(client(gateway, model, until, seconds) for model in ("a", "b") * CLIENTS))
            swaps = len(gateway.events("eviction"))
    cuts = quantiles(seconds, n=100)
    per_minute = len(seconds) * 60 / length_s
    print(
        f"{name:<18} {per_minute:>8.0f} requests/min   {swaps:>3} swaps   "
        f"p50 {cuts[49]:>5.2f} s   p99 {cuts[98]:>5.2f} s   longest {max(seconds):>5.2f} s",
        flush=True,
    )
    return per_minute, cuts[98]


async def single(name: str, settings: Mapping[str, object], count: int = 10) -> None:
    """One request at a time, each for the model that is not there."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder:
        async with running_gateway(Path(folder), settings) as gateway:
            seconds = []
            for model in "ab" * (count // 2 + 1):
                began = loop.time()
                status, _, _ = await gateway.chat(model, max_tokens=1)
                assert status == 200, status
                seconds.append(loop.time() - began)
    swaps = seconds[2:]  # the first two are starts in every case
    print(f"{name:<18} a request that needs a swap: {median(swaps):.2f} s, longest {max(swaps):.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.swap", description="What the quantum is worth.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--quantum", type=float, nargs="+", default=[5, 10])
    parser.add_argument("--load", type=float, default=2, help="seconds that a model takes to load")
    parser.add_argument("--request", type=float, default=0.3, help="seconds that an engine takes for a request")
    parser.add_argument("--wake", type=float, default=0.2, help="seconds that an engine takes to sleep, and to wake")
    given = parser.parse_args()
    engines = Engines(given.load, given.request, given.wake)
    for sleep, word in (("off", ""), ("level_1", ", sleep")):
        asyncio.run(single(f"plain LRU{word}", config(0, engines, sleep)))
        plain, plain_p99 = asyncio.run(run(f"plain LRU{word}", config(0, engines, sleep), given.seconds))
        for quantum_s in given.quantum:
            served, p99 = asyncio.run(run(f"{quantum_s:g} s{word}", config(quantum_s, engines, sleep), given.seconds))
            bound_s = quantum_s + LOADS_IN_BOUND * given.load
            kept = "both within it" if max(plain_p99, p99) <= bound_s else f"BEYOND it: {plain_p99:.1f} and {p99:.1f} s"
            print(
                f"{'':<18} {served / plain:.1f} times as many, at a bound of {bound_s:g} s on p99, {kept}", flush=True
            )


if __name__ == "__main__":
    main()
