# SPDX-License-Identifier: Apache-2.0
"""Images that a real Docker engine has to pull from a registry that takes its time: they take nobody's place."""

import asyncio
import os
from pathlib import Path
from typing import Any

import aiodocker

from tests.docker.registry import serving_image
from tests.docker.test_gateway import config, containers, model
from tests.gateway import running_gateway
from tests.integration.test_reload import reload
from tests.lab.lab import Lab

B1 = "vllm_server_b_instance_1"


def pulling(lab: Lab, pull_stall_s: float = 60, **models: dict[str, Any]) -> dict[str, Any]:
    settings = config(lab, **models)
    return {**settings, "docker": {**settings["docker"], "pull": "missing", "pull_stall_s": pull_stall_s}}


async def test_a_pull_that_hangs_keeps_nobody_else_waiting(lab: Lab, docker: aiodocker.Docker, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    async with serving_image("engine:1", os.urandom(1 << 20)) as registry:
        registry.goes_on.clear()
        settings = pulling(lab, a=model("a", image=registry.name), b=model("b"))
        async with running_gateway(tmp_path, settings, lab.environment) as gateway:
            waiting = asyncio.create_task(gateway.chat("a"))
            page = await gateway.until(lambda page: bool(page["models"]["a"]["image_pull"]))
            page = await gateway.until(lambda page: bool(page["models"]["a"]["image_pull"]["total_mib"]))
            shown = page["models"]["a"]
            assert (shown["state"], shown["image_pull"]["image"]) == ("starting", registry.name)
            assert shown["why_fewer"] == "its image is being fetched"
            assert (await gateway.chat("b"))[0] == 200
            assert await containers(lab) == [B1]
            assert not waiting.done()
            registry.goes_on.set()
            status, _, reply = await waiting
            assert (status, reply["error"]["code"]) == (503, "model_start_failed"), "it holds no engine"
            assert gateway.events("eviction", model="b", for_model="a"), "only once it could be started"
            await gateway.event("instance_stopped", model="a")
            await docker.images.delete(registry.name, force=True)


async def test_what_runs_serves_until_the_changed_image_is_there(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    async with serving_image("engine:1", os.urandom(1 << 20)) as registry:
        registry.goes_on.clear()
        async with running_gateway(tmp_path, pulling(lab, b=model("b")), lab.environment) as gateway:
            assert (await gateway.chat("b"))[0] == 200
            changed = pulling(lab, pull_stall_s=0.5, b=model("b", image=registry.name))
            await reload(gateway, tmp_path, changed)
            failed = await gateway.event("image_pull_failed", model="b", count=2)
            assert "did not move" in failed["problem"]
            assert (await gateway.chat("b"))[0] == 200
            assert await containers(lab) == [B1]
            page = await gateway.status()
            assert "did not move" in page["models"]["b"]["last_error"]
            assert not gateway.events("instance_draining")
