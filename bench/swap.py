# SPDX-License-Identifier: Apache-2.0
"""Two models that do not fit together, both asked for all the time: requests served with and without a quantum.

    python -m bench.swap [--seconds 60] [--quantum 10] [--load 2] [--request 0.3]

Needs no GPU: the process runtime with the simulated engine, one simulated GPU that has room for one of the models.
Each model has its clients, each of which sends its next request as soon as it has the answer to the last.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import quantiles

from tests.gateway import GatewayProcess, running_gateway

CLIENTS = 8  # of each model


def config(min_resident_s: float, load_s: float, request_s: float) -> Mapping[str, object]:
    environment = {"SIM_LOAD_S": str(load_s), "SIM_TTFT_S": str(request_s), "SIM_WEIGHTS_MIB": "2000"}
    model = {"repository": "test/model", "footprint_mib": 6000, "environment": environment}
    gpus = {"source": "simulated", "devices": [{"name": "Simulated GPU", "memory_mib": 10_000}], "margin_mib": 0}
    return {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {**gpus, "min_resident_s": min_resident_s},
        "models": {"a": model, "b": model},
        "log": {"level": "info"},
    }


async def client(gateway: GatewayProcess, model: str, until: float, seconds: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while (began := loop.time()) < until:
        status, _, _ = await gateway.chat(model, max_tokens=1)
        assert status == 200, status
        seconds.append(loop.time() - began)


async def run(name: str, settings: Mapping[str, object], length_s: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with running_gateway(Path(folder), settings) as gateway:
            seconds: list[float] = []
            until = asyncio.get_running_loop().time() + length_s
            await asyncio.gather(*(client(gateway, model, until, seconds) for model in ("a", "b") * CLIENTS))
            swaps = len(gateway.events("eviction"))
    cuts = quantiles(seconds, n=100)
    print(
        f"{name:<12} {len(seconds) * 60 / length_s:>8.0f} requests/min   {swaps:>3} swaps   "
        f"p50 {cuts[49]:>5.2f} s   p99 {cuts[98]:>5.2f} s   longest {max(seconds):>5.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.swap", description="What the quantum is worth.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--quantum", type=float, default=10)
    parser.add_argument("--load", type=float, default=2, help="seconds that a model takes to load")
    parser.add_argument("--request", type=float, default=0.3, help="seconds that an engine takes for a request")
    given = parser.parse_args()
    for name, min_resident_s in (("plain LRU", 0), (f"{given.quantum:g} s", given.quantum)):
        asyncio.run(run(name, config(min_resident_s, given.load, given.request), given.seconds))


if __name__ == "__main__":
    main()
