# SPDX-License-Identifier: Apache-2.0
"""Deeds that are a changed configuration, which the gateway reads while it runs."""

import signal
from collections.abc import Callable
from typing import Any

import yaml

from tests.faults.scene import FOOTPRINT_MIB, Scene

_OTHER = "another"

Change = Callable[[dict[str, Any]], object]


async def change(scene: Scene, by: Change, told: str = "config_reloaded") -> None:
    """What the gateway has read lasts until the end of the scene."""
    before = scene.gateway.file.read_text(encoding="utf-8")
    config = yaml.safe_load(before)
    by(config)
    await _read(scene, yaml.safe_dump(config), told)
    scene.lasts.push_async_callback(_read, scene, before)


async def _read(scene: Scene, text: str, told: str = "config_reloaded") -> None:
    if scene.gateway.process.returncode is not None:
        return
    count = len(scene.gateway.events(told))
    scene.gateway.file.write_text(text, encoding="utf-8")
    scene.gateway.process.send_signal(signal.SIGHUP)
    await scene.gateway.event(told, count=count + 1)


async def is_wrong(scene: Scene) -> None:
    await change(scene, lambda config: config.update(modles={}), "config_reload_failed")


async def model_is_another(scene: Scene) -> None:
    """Its instances are replaced one by one by such with other arguments."""
    arguments = {"engine_arguments": ["--max-model-len", "4096"]}
    await change(scene, lambda config: config["models"][scene.model].update(arguments))


async def instances_were_replaced(scene: Scene) -> None:
    await _old_ones_stopped(scene)
    await scene.nothing_left()


async def model_is_new(scene: Scene) -> None:
    await change(scene, lambda config: config["models"].update({_OTHER: config["models"][scene.model]}))


async def new_one_is_served(scene: Scene) -> None:
    """And is gone as it came."""
    gateway = scene.gateway
    assert (await gateway.chat(_OTHER))[0] == 200
    await gateway.until(lambda page: page["models"][_OTHER]["running"] == 2)
    await scene.lasts.aclose()
    await gateway.until(lambda page: _OTHER not in page["models"])
    await scene.nothing_left()


async def model_is_gone(scene: Scene) -> None:
    await change(scene, lambda config: config["models"].pop(scene.model))


async def model_is_back(scene: Scene) -> None:
    await _old_ones_stopped(scene)
    assert (await scene.gateway.chat(scene.model))[0] == 404
    await scene.lasts.aclose()
    assert (await scene.gateway.chat(scene.model))[0] == 200
    await scene.nothing_left()


async def _old_ones_stopped(scene: Scene) -> None:
    for engine in scene.engines:
        await scene.gateway.event("instance_stopped", instance=engine.name, model=scene.model)


async def another_model_needs_the_room(scene: Scene) -> None:
    """All of it, on both GPUs."""
    wants = {"footprint_mib": FOOTPRINT_MIB * 3 // 2, "tensor_parallel_size": 2, "instances": 1}
    await change(scene, lambda config: config["models"].update({_OTHER: {**config["models"][scene.model], **wants}}))
    scene.ask(_OTHER)
    for engine in scene.engines:
        await scene.gateway.event("instance_draining", instance=engine.name)


async def room_comes_back(scene: Scene) -> None:
    """The other one was served, and makes way in its turn."""
    assert all(request.said.status == 200 for request in scene.blockers)
    assert (await scene.gateway.chat(scene.model))[0] == 200
    await scene.lasts.aclose()
    await scene.nothing_left()
