# SPDX-License-Identifier: Apache-2.0
"""The faults as deeds: each makes one thing go wrong in a scene."""

import io
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import aiohttp
import yaml

from tests.faults.faults import Act
from tests.faults.scene import Scene


def engine_gets(number: signal.Signals) -> Act:
    async def strike(scene: Scene) -> None:
        scene.target.signal(number)

    return strike


def engine_fails_by(fault: str) -> Act:
    """One of the simulated engine's faults."""

    async def strike(scene: Scene) -> None:
        await scene.target.set(fault)

    return strike


async def clients_leave(scene: Scene) -> None:
    for request in scene.requests:
        await request.leave()


async def gateway_is_told_to_end(scene: Scene) -> None:
    scene.gateway.process.terminate()


async def gateway_dies(scene: Scene) -> None:
    """Its engines, which are its children, die with it."""
    scene.gateway.process.kill()
    for engine in scene.engines:
        engine.out_of_reach = True


async def model_changes(scene: Scene) -> None:
    """Its instances are replaced one by one by such with other arguments."""
    config = yaml.safe_load(scene.gateway.file.read_text(encoding="utf-8"))
    config["models"][scene.model]["engine_arguments"] = ["--max-model-len", "4096"]
    await _reload(scene, config, "config_reloaded")


async def replaced(scene: Scene) -> None:
    for engine in scene.engines:
        await scene.gateway.event("instance_stopped", instance=engine.name, model=scene.model)
    await scene.nothing_left()


async def configuration_breaks(scene: Scene) -> None:
    config = yaml.safe_load(scene.gateway.file.read_text(encoding="utf-8"))
    await _reload(scene, {**config, "modles": {}}, "config_reload_failed")
    scene.gateway.file.write_text(yaml.safe_dump(config), encoding="utf-8")


async def _reload(scene: Scene, config: Mapping[str, Any], told: str) -> None:
    before = len(scene.gateway.events(told))
    scene.gateway.file.write_text(yaml.safe_dump(config), encoding="utf-8")
    scene.gateway.process.send_signal(signal.SIGHUP)
    await scene.gateway.event(told, count=before + 1)


async def docker_goes_away(scene: Scene) -> None:
    assert scene.docker is not None
    await scene.docker.shut()


async def docker_comes_back(scene: Scene) -> None:
    """And what ends from now on is noticed again, and replaced."""
    assert scene.docker is not None
    await scene.docker.open()
    scene.target.signal(signal.SIGKILL)
    await scene.gateway.event("instance_failed", instance=scene.target.name, model=scene.model)
    await scene.nothing_left()


async def container_runs_out_of_memory(scene: Scene) -> None:
    """The kernel kills the engine: a body came that does not fit into what the container may have."""
    assert scene.docker is not None
    await scene.docker.limit_memory(scene.target.name, 96)
    scene.target.out_of_reach = True
    body = io.BytesIO(b" " * (150 << 20))
    with suppress(aiohttp.ClientError):
        async with scene.target.http.post(f"http://{scene.target.address}/tokenize", data=body):
            pass


async def nothing(scene: Scene) -> None:
    """The fault is in the model's settings."""
