# SPDX-License-Identifier: Apache-2.0
"""The Docker engine is killed and started anew: it then ends what it ran, and the gateway replaces that."""

import asyncio
import signal
from pathlib import Path

from tests.docker.test_docker_away import health
from tests.docker.test_gateway import config, containers, model
from tests.gateway import running_gateway
from tests.lab import dockerd
from tests.lab.lab import Lab


async def test_a_killed_docker_costs_a_delay(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(2, 40_000)
    settings = config(lab, a=model("a"), b=model("b"))
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        await asyncio.to_thread(dockerd.end, lab.place, signal.SIGKILL)
        try:
            await gateway.event("runtime_down")
            assert (await health(gateway))["status"] == "degraded"
            waiting = [asyncio.create_task(gateway.chat(name)) for name in ("a", "b")]
            await gateway.event("instance_suspect", model="a")
        finally:
            await asyncio.to_thread(dockerd.launch, lab.place)
        assert [(await one)[0] for one in waiting] == [200, 200]
        page = await gateway.status()
        assert await containers(lab) == sorted(page["active_containers_by_name"])
        assert [model["running"] for model in page["models"].values()] == [1, 1]
        assert len(gateway.events("instance_starting")) == 3
        assert await health(gateway) == {"status": "ok"}
