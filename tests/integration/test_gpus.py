# SPDX-License-Identifier: Apache-2.0
"""GPUs as NVML shows them: the real binding over a stand-in library, a real gateway, engines as child processes."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import FAST
from tests.lab.nvml import build_library
from vllm_gateway.allocator.nvml import machine_memory_mib
from vllm_gateway.simulator.gpu_memory import SimulatedGpus

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc makes the stand-in for NVML")
NOT_SUPPORTED = 3
SMALL = {**FAST, "SIM_WEIGHTS_MIB": "200"}


@pytest.fixture
def gpus(tmp_path: Path) -> SimulatedGpus:
    return SimulatedGpus(tmp_path / "gpus")


def model(name: str, footprint_mib: int, **more: Any) -> dict[str, Any]:
    return {"repository": f"test/{name}", "environment": SMALL, "footprint_mib": footprint_mib, **more}


@asynccontextmanager
async def serving(folder: Path, models: dict[str, Any], **gpus: Any) -> AsyncIterator[GatewayProcess]:
    settings = {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {"source": "nvml", "margin_mib": 0, **gpus},
        "models": models,
    }
    library = str(build_library(folder / "nvml").parent)
    environment = {"SIMULATED_GPU_DIR": str(folder / "gpus"), "LD_LIBRARY_PATH": library}
    environment |= {name: "" for name in ("NVIDIA_VISIBLE_DEVICES",) if name in os.environ}
    gateway: AbstractAsyncContextManager[GatewayProcess] = running_gateway(folder, settings, environment)
    async with gateway as running:
        yield running


async def test_a_gpu_without_memory_of_its_own_has_the_machines(tmp_path: Path, gpus: SimulatedGpus) -> None:
    total_mib, _ = machine_memory_mib()
    gpus.create([("NVIDIA GB10", total_mib), ("Orin", total_mib), ("NVIDIA L4", 24000)])
    gpus.update(0, memory_error=NOT_SUPPORTED)
    gpus.update(1, shown_mib=0)
    models = {"a": model("a", 600, sleep="level_1", instances=1)}
    async with serving(tmp_path, models, memory_mib={1: 5000}, **{"except": [2]}) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        first, second = (await gateway.status())["gpus"]
        assert (first["total_mib"], first["shared_memory"], first["problem"]) == (total_mib, True, None)
        assert 0 < first["used_mib"] < total_mib
        assert first["foreign_mib"] > 0, "what the machine's programs use is not free for engines"
        assert (second["total_mib"], second["shared_memory"]) == (5000, True)
        said = [(line["gpu"], line["total_mib"]) for line in gateway.events("gpu_memory_shared")]
        assert said == [("GPU-sim-0", total_mib), ("GPU-sim-1", 5000)]


async def test_the_devices_of_a_gpu_in_mig_mode_are_gpus(tmp_path: Path, gpus: SimulatedGpus) -> None:
    gpus.create([("NVIDIA H200", 20000), ("NVIDIA H200", 20000), ("NVIDIA L4", 8000)])
    gpus.split(0, 9000, 5000)
    gpus.update(1, mig=1)
    models = {
        "large": model("large", 8000),
        "small": model("small", 4000),
        "two": model("two", 1000, tensor_parallel_size=2),
    }
    async with serving(tmp_path, models, **{"except": [2]}) as gateway:
        assert [(await gateway.chat(name))[0] for name in ("large", "small")] == [200, 200]
        page = await gateway.until(lambda page: all(gpu["used_mib"] for gpu in page["gpus"][:2]))
        placed = {one["model"]: one["gpus"] for one in page["active_containers_by_name"].values()}
        assert placed == {"large": ["MIG-sim-0-0"], "small": ["MIG-sim-0-1"]}
        shown = {gpu["id"]: (gpu["index"], gpu["total_mib"]) for gpu in page["gpus"][:2]}
        assert shown == {"MIG-sim-0-0": (0, 9000), "MIG-sim-0-1": (0, 5000)}
        assert "has no MIG devices" in page["gpus"][2]["problem"]
        status, _, answer = await gateway.chat("two")
        assert (status, answer["error"]["code"]) == (503, "no_room")
        assert "MIG devices cannot be used together" in answer["error"]["message"]
