# SPDX-License-Identifier: Apache-2.0
"""The gateway in a container of its own: it starts engines beside itself and reaches them on a network."""

import asyncio
import sys
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp
import pytest
import yaml

from tests.docker.containers import until_healthy
from tests.lab.lab import Lab
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
NETWORK = "vllm-gateway-test"
LAB_PYTHON = (3, 11)  # of the lab's base image, which borrows this environment's packages


def container(lab: Lab, config: Path) -> dict[str, Any]:
    """As compose.yaml has it: the Docker socket, the configuration, the network; and NVML, which is the lab's here."""
    packages = sysconfig.get_path("purelib")
    mounts = [
        f"{lab.place.socket}:/var/run/docker.sock",
        f"{config}:/config/gateway.yaml:ro",
        f"{ROOT / 'src'}:/gateway/src:ro",
        f"{ROOT / 'strategies'}:/gateway/strategies:ro",
        f"{packages}:/packages:ro",
        f"{lab.gpu_dir}:{lab.gpu_dir}",
        f"{lab.place.library_directory}:/nvml:ro",
    ]
    environment = {
        "VLLM_GATEWAY_OPEN": "true",
        "DOCKER_NETWORK_NAME": NETWORK,
        "MEMORY_FOOTPRINT_FILE": "/tmp/footprints.json",
        "PYTHONPATH": "/gateway/src:/packages",
        "LD_LIBRARY_PATH": "/nvml",
        "SIMULATED_GPU_DIR": str(lab.gpu_dir),
    }
    return {
        "Image": lab.image,
        "Entrypoint": ["python3", "-m", "vllm_gateway.cli"],
        "Cmd": ["serve", "--config", "/config/gateway.yaml", "--host", "0.0.0.0"],
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "HostConfig": {
            "Binds": mounts,
            "NetworkMode": NETWORK,
            "PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
            "Init": True,
        },
        "ExposedPorts": {"8000/tcp": {}},
    }


@asynccontextmanager
async def gateway_container(lab: Lab, docker: aiodocker.Docker, config: Path) -> AsyncIterator[str]:
    """The address at which this machine reaches it."""
    gateway = await docker.containers.create(container(lab, config), name="gateway-under-test")
    await gateway.start()
    published = (await gateway.show())["NetworkSettings"]["Ports"]["8000/tcp"]
    url = f"http://127.0.0.1:{published[0]['HostPort']}"
    await until_healthy(url, gateway)
    yield url
    await gateway.stop(t=10)
    assert (await gateway.show())["State"]["ExitCode"] == 0


@pytest.mark.may_skip
@pytest.mark.skipif(sys.version_info[:2] != LAB_PYTHON, reason="needs the Python of the lab's base image: 3.11")
async def test_a_gateway_in_a_container_reaches_its_engines_on_their_network(
    lab: Lab, docker: aiodocker.Docker, tmp_path: Path
) -> None:
    lab.reset_gpus(2, 40_000)
    fast = {"SIM_LOAD_S": "0.2", "SIM_TTFT_S": "0", "SIM_WEIGHTS_MIB": "2000"}
    models = {"a": {"repository": "test/a", "instances": 2, "footprint_mib": 30_000, "environment": fast}}
    config = tmp_path / "gateway.yaml"
    config.write_text(yaml.safe_dump({"docker": {"image": lab.image, "pull": "never"}, "models": models}))
    await docker.networks.create({"Name": NETWORK})
    async with gateway_container(lab, docker, config) as url, aiohttp.ClientSession(url) as http:
        body = {"model": "a", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        seen: set[str] = set()
        async with asyncio.timeout(LIMIT_S):
            while len(seen) < 2:
                async with http.post("/v1/chat/completions", json=body) as reply:
                    assert reply.status == 200, await reply.text()
                    seen.add(reply.headers["x-simulated-instance"])
        async with http.get("/gateway/status") as reply:
            page = await reply.json()
        for name, one in page["active_containers_by_name"].items():
            engine = await (await docker.containers.get(name)).show()
            assert one["address"] == f"{engine['NetworkSettings']['Networks'][NETWORK]['IPAddress']}:8000"
            assert not engine["HostConfig"]["PortBindings"]
            async with aiohttp.ClientSession(f"http://{one['address']}") as past, past.get("/v1/models") as reply:
                assert reply.status == 401, "it wants a key"
        assert sum(gpu["reserved_mib"] for gpu in page["gpus"]) == 60_000
