# SPDX-License-Identifier: Apache-2.0
"""A gateway that is killed at any point of what it does: the next one finds its way."""

import asyncio
import json
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.docker.test_gateway import config, model
from tests.gateway import GatewayProcess, running_gateway
from tests.lab.lab import Lab

KILLS = 12  # for each seed
LASTS_S = {"a start": 1.2, "an eviction": 0.8, "a discovery run": 1.5, "a footprint write": 0.01}
GPU_MIB = 40_000
MODELS = ("a", "b", "new")
CONTAINERS = "vllm-gateway.owner"


def settings_of(lab: Lab, generation: int) -> dict[str, Any]:
    """Three models for two GPUs; the footprint of one is unknown, and never the same twice."""
    new = model("new-4b", footprint_mib=None, engine_arguments=["--seed", str(generation)])
    return config(lab, a=model("a"), b=model("b"), new=new)


async def ask(gateway: GatewayProcess, dice: Random) -> None:
    while True:
        await gateway.chat(dice.choice(MODELS))


async def everything_is_in_order(lab: Lab, gateway: GatewayProcess, folder: Path) -> None:
    def names() -> set[str]:
        return {one["Names"][0].lstrip("/") for one in lab.containers(CONTAINERS)}

    page = await gateway.until(lambda page: names() <= set(page["active_containers_by_name"]))
    for gpu in page["gpus"]:
        assert gpu["reserved_mib"] <= gpu["total_mib"]
    on_gpus = Counter(gpu for one in page["active_containers_by_name"].values() for gpu in one["gpus"])
    for gpu in page["gpus"]:
        if not on_gpus[gpu["id"]]:
            await gateway.until(partial(_is_unused, gpu["id"]))
    footprints = folder / "footprints.json"
    if footprints.exists():
        json.loads(footprints.read_text("utf-8"))
    assert {file.name for file in folder.iterdir()} <= {"gateway.yaml", "footprints.json", "state"}


def _is_unused(gpu_id: str, page: dict[str, Any]) -> bool:
    """Nothing is held but what the driver keeps, or an instance has come there meanwhile."""
    taken = any(gpu_id in one["gpus"] for one in page["active_containers_by_name"].values())
    return taken or any(gpu["id"] == gpu_id and gpu["used_mib"] <= 600 for gpu in page["gpus"])


async def something_of(what: str, gateway: GatewayProcess) -> None:
    """Returns when that is under way."""
    if what == "a footprint write":
        await gateway.event("footprint_measured")
    elif what == "an eviction":
        await gateway.event("eviction")
    elif what == "a discovery run":
        await gateway.event("instance_starting", model="new")
    else:
        await gateway.event("instance_starting")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3, 4, 5))])
async def test_the_next_gateway_finds_its_way(seed: int, lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(2, GPU_MIB)
    dice = Random(seed)
    for generation in range(KILLS):
        what = dice.choice(list(LASTS_S))
        async with running_gateway(
            tmp_path, settings_of(lab, generation), lab.environment, may_be_killed=True
        ) as gateway:
            await everything_is_in_order(lab, gateway, tmp_path)
            asking = [asyncio.create_task(ask(gateway, dice)) for _ in range(3)]
            await something_of(what, gateway)
            await asyncio.wait(asking, timeout=dice.uniform(0.0, LASTS_S[what]))
            gateway.process.kill()
            await gateway.process.wait()
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
    async with running_gateway(tmp_path, settings_of(lab, KILLS), lab.environment) as gateway:
        await everything_is_in_order(lab, gateway, tmp_path)
        for name in MODELS:
            assert (await gateway.chat(name))[0] == 200
