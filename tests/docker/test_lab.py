# SPDX-License-Identifier: Apache-2.0
"""The lab keeps its promises: if these fail, nothing that the other tests here say can be trusted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp
import pytest
from aiodocker.containers import DockerContainer

from tests.docker.containers import assert_running, until_healthy
from tests.lab import lab as labs
from tests.lab import machine, processes
from tests.lab.lab import Lab
from tests.lab.place import Place
from tests.lab.shell import run
from tests.waiting import LIMIT_S, until
from vllm_gateway.simulator.gpu_memory import SimulatedGpus

RESERVED_MIB = 600

TAKE_MEMORY = """
import signal, sys
from vllm_gateway.simulator.gpu_memory import SimulatedGpus
held = SimulatedGpus("/run/simulated-gpus").take(sys.argv[1], int(sys.argv[2]))
signal.pause()
"""

SHOW_GPUS = """
import json, pynvml
pynvml.nvmlInit()
def show(index):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = pynvml.nvmlDeviceGetUUID(gpu)
    first, second = pynvml.nvmlDeviceGetMemoryInfo(gpu), pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2)
    return {
        "uuid": uuid,
        "name": pynvml.nvmlDeviceGetName(gpu),
        "index_by_uuid": pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid)),
        "first": [first.total >> 20, first.used >> 20, first.free >> 20],
        "second": [second.total >> 20, second.reserved >> 20, second.used >> 20, second.free >> 20],
        "processes": [[p.pid, p.usedGpuMemory >> 20] for p in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)],
        "utilization": pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
    }
print(json.dumps({
    "driver": pynvml.nvmlSystemGetDriverVersion(),
    "cuda": pynvml.nvmlSystemGetCudaDriverVersion(),
    "gpus": [show(index) for index in range(pynvml.nvmlDeviceGetCount())],
}))
"""

LOST_GPU = """
import pynvml
pynvml.nvmlInit()
try:
    pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
except pynvml.NVMLError_GpuIsLost as error:
    print(pynvml.nvmlDeviceGetCount(), error)
"""


def ask_nvml(lab: Lab, program: str) -> str:
    """In a process of its own: the loader reads LD_LIBRARY_PATH only at a process's start."""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **lab.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.strip()


def seen_by_nvml(lab: Lab, index: int) -> dict[str, Any]:
    gpu: dict[str, Any] = json.loads(ask_nvml(lab, SHOW_GPUS))["gpus"][index]
    return gpu


def container_config(lab: Lab, command: list[str], *, entrypoint: list[str] | None, device: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "Image": lab.image,
        "Cmd": command,
        "ExposedPorts": {"8000/tcp": {}},
        "Labels": {"lab.test": "yes"},
        "HostConfig": {
            "DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": [device], "Capabilities": [["gpu"]]}],
            "PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        },
    }
    return config if entrypoint is None else {**config, "Entrypoint": entrypoint}


async def start_holder(docker: aiodocker.Docker, lab: Lab, device: str, mib: int) -> DockerContainer:
    """A container that holds GPU memory; returns once it does."""
    config = container_config(lab, [device, str(mib)], entrypoint=["python3", "-c", TAKE_MEMORY], device=device)
    container = await docker.containers.run(config)

    async def holds() -> bool:
        await assert_running(container)
        return SimulatedGpus(lab.gpu_dir).gpu(device).used_mib == mib

    await until(holds)
    return container


async def test_memory_of_a_container_is_seen_through_the_real_binding(lab: Lab, docker: aiodocker.Docker) -> None:
    container = await start_holder(docker, lab, "GPU-sim-1", 4096)
    pid = (await container.show())["State"]["Pid"]

    seen = json.loads(ask_nvml(lab, SHOW_GPUS))

    assert (seen["driver"], seen["cuda"]) == ("580.95.05", 13000)
    assert [gpu["uuid"] for gpu in seen["gpus"]] == ["GPU-sim-0", "GPU-sim-1"]
    assert [gpu["index_by_uuid"] for gpu in seen["gpus"]] == [0, 1]
    assert seen["gpus"][0]["first"] == [81920, RESERVED_MIB, 81920 - RESERVED_MIB]
    assert seen["gpus"][0]["processes"] == []
    assert seen["gpus"][1]["first"] == [81920, RESERVED_MIB + 4096, 81920 - RESERVED_MIB - 4096]
    assert seen["gpus"][1]["second"] == [81920, RESERVED_MIB, 4096, 81920 - RESERVED_MIB - 4096]
    assert seen["gpus"][1]["processes"] == [[pid, 4096]]


async def test_a_killed_container_gives_its_memory_back(lab: Lab, docker: aiodocker.Docker) -> None:
    container = await start_holder(docker, lab, "GPU-sim-0", 2048)
    assert seen_by_nvml(lab, 0)["second"][2] == 2048

    await container.kill(signal="SIGKILL")
    await container.wait()

    assert seen_by_nvml(lab, 0)["second"][2] == 0


async def test_a_device_that_is_not_there_is_refused(lab: Lab, docker: aiodocker.Docker) -> None:
    config = container_config(lab, [], entrypoint=["true"], device="GPU-sim-7")
    container = await docker.containers.create(config)
    with pytest.raises(aiodocker.DockerError, match="GPU-sim-7: unknown device"):
        await container.start()


async def test_a_lost_gpu_answers_with_nvmls_own_error(lab: Lab, gpus: SimulatedGpus) -> None:
    gpus.update(0, error=15)
    assert ask_nvml(lab, LOST_GPU) == "2 GPU is lost"


async def test_the_engine_serves_on_a_published_port(lab: Lab, docker: aiodocker.Docker) -> None:
    command = ["--model", "tiny", "--served-model-name", "tiny"]
    container = await docker.containers.run(
        {**container_config(lab, command, entrypoint=None, device="GPU-sim-0"), "Env": ["SIM_LOAD_S=0.1"]}
    )
    ports = (await container.show())["NetworkSettings"]["Ports"]
    url = f"http://127.0.0.1:{ports['8000/tcp'][0]['HostPort']}"
    await until_healthy(url, container)
    async with aiohttp.ClientSession() as client, client.get(f"{url}/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]
    assert seen_by_nvml(lab, 0)["second"][2] > 0


async def test_the_bridge_keeps_its_address_while_containers_come_and_go(lab: Lab, docker: aiodocker.Docker) -> None:
    before = of_bridge(lab.place, "address")
    await start_holder(docker, lab, "GPU-sim-0", 1024)
    assert of_bridge(lab.place, "address") == before
    assert of_bridge(lab.place, "addr_assign_type") == "3\n"  # given, not a container's


def of_bridge(place: Place, name: str) -> str:
    """/sys shows the network in which it was mounted: one of these tests' own, here."""
    show = f"mount -t sysfs sysfs /sys && cat /sys/class/net/{place.bridge}/{name}"
    return run("unshare", "--mount", "sh", "-c", show)


async def test_what_a_test_leaves_is_removed(lab: Lab, docker: aiodocker.Docker) -> None:
    with lab.nothing_left():
        await start_holder(docker, lab, "GPU-sim-0", 1024)
        await docker.networks.create({"Name": "left-behind", "Driver": "bridge"})
        assert len(lab.containers(label="lab.test=yes")) == 1
    assert lab.containers(label="lab.test") == []
    assert "left-behind" not in {network["Name"] for network in lab.networks()}


@pytest.fixture
def elsewhere() -> Iterator[Place]:
    """A second lab, whose engine a test may kill."""
    with tempfile.TemporaryDirectory(prefix="vgl-") as directory:
        place = Place(Path(directory) / "lab")
        try:
            yield place
        finally:
            labs.down(place, purge=True)


@asynccontextmanager
async def lab_up(place: Place) -> AsyncIterator[tuple[Lab, aiodocker.Docker]]:
    up = await asyncio.to_thread(labs.up, place)
    async with aiodocker.Docker(url=up.docker_host) as client:
        yield up, client


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def left_of(place: Place) -> dict[str, object]:
    return {
        "processes": processes.of_lab(place),
        "mounts": machine.mounts_below(place),
        "bridges": [name for name in interfaces() if name == place.bridge],
    }


async def test_down_leaves_nothing_even_after_the_engine_was_killed(elsewhere: Place) -> None:
    async with lab_up(elsewhere) as (first, docker):
        assert first.started_here
        assert not (await asyncio.to_thread(labs.up, elsewhere)).started_here
        network = await docker.networks.create({"Name": "own", "Driver": "bridge"})
        assert f"br-{network.id[:12]}" in interfaces()
        await start_holder(docker, first, "GPU-sim-0", 1024)
    kill_dockerd(elsewhere)

    async with lab_up(elsewhere) as (second, docker):
        assert second.started_here
        await start_holder(docker, second, "GPU-sim-1", 1024)
    kill_dockerd(elsewhere)

    await asyncio.to_thread(labs.down, elsewhere)
    assert left_of(elsewhere) == {"processes": [], "mounts": [], "bridges": []}
    assert f"br-{network.id[:12]}" not in interfaces()
    assert [gpu.used_mib for gpu in SimulatedGpus(elsewhere.gpu_directory).gpus()] == [0, 0]


def kill_dockerd(place: Place) -> None:
    pid = processes.pid_in(place.dockerd_pid_file)
    assert pid is not None
    assert processes.belongs_to(place, pid)
    processes.kill(pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not processes.belongs_to(place, pid), limit_s=LIMIT_S)
