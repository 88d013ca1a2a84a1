# SPDX-License-Identifier: Apache-2.0
"""The faults as deeds: each makes one thing go wrong in a scene."""

import asyncio
import io
import json
import signal
import socket
from contextlib import suppress

import aiohttp
import yaml
from yarl import URL

from tests.faults.faults import Act
from tests.faults.phases import Phase
from tests.faults.scene import GPU_RESERVED_MIB, Scene
from tests.gateway import running_gateway
from tests.waiting import LIMIT_S

_AWAY_S = 1.0


def engine_gets(number: signal.Signals) -> Act:
    async def strike(scene: Scene) -> None:
        scene.target.signal(number)

    return strike


def engine_fails_by(fault: str) -> Act:
    """One of the simulated engine's faults."""

    async def strike(scene: Scene) -> None:
        await scene.target.set(fault)

    return strike


def every_engine_fails_by(fault: str) -> Act:
    async def strike(scene: Scene) -> None:
        for engine in scene.engines:
            await engine.set(fault)

    return strike


async def engine_is_ejected_and_comes_back(scene: Scene) -> None:
    """What the gateway thinks of it changes with the requests that it gets."""
    engine, gateway = scene.target, scene.gateway
    async with asyncio.timeout(LIMIT_S):
        while not gateway.events("instance_ejected", instance=engine.name):
            await gateway.chat(scene.model)
        await engine.lift(*engine.faults)
        while not gateway.events("instance_restored", instance=engine.name):
            assert (await gateway.chat(scene.model))[0] == 200
    await scene.nothing_left()


async def engine_comes_to(scene: Scene) -> None:
    """In one phase it does not: there it is to be replaced."""
    if scene.phase is not Phase.BEFORE:
        scene.target.signal(signal.SIGCONT)
        await scene.target.lift(*scene.target.faults)
    await scene.nothing_left()


async def clients_leave(scene: Scene) -> None:
    for request in scene.requests:
        await request.leave()


async def client_stops_reading(scene: Scene) -> None:
    """One more client, with a stream so large that no buffer takes it; those of the scene are bystanders."""
    url = URL(scene.gateway.url)
    assert url.port is not None
    client = scene.lasts.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, (str(url.host), url.port))
    body = {"model": scene.model, "prompt": "x", "n": 100, "max_tokens": 5000, "ignore_eos": True, "stream": True}
    text = json.dumps(body)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: stalled-{scene.model}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(client, (head + text).encode())


async def stalled_client_is_cut_off(scene: Scene) -> None:
    finished = await scene.gateway.event("request_finished", request_id=f"stalled-{scene.model}")
    assert finished["outcome"] == "client_stalled", finished
    await scene.nothing_left()


async def gateway_is_told_to_end(scene: Scene) -> None:
    scene.gateway.process.terminate()


async def gateway_dies(scene: Scene) -> None:
    """Engines that are its children die with it."""
    scene.gateway.process.kill()
    for engine in scene.engines:
        engine.out_of_reach = scene.docker is None


async def gateway_gives_over(scene: Scene) -> None:
    """A new one takes the listening sockets and the containers over; this one serves what it has, and ends."""
    assert scene.docker is not None
    folder = scene.gateway.file.parent / "next"
    folder.mkdir()
    config = yaml.safe_load(scene.gateway.file.read_text(encoding="utf-8"))
    arguments = ("--take-over", "--port", str(URL(scene.gateway.url).port))
    await scene.lasts.enter_async_context(
        running_gateway(folder, config, scene.docker.environment, arguments=arguments)
    )


async def gpu_falls_off(scene: Scene) -> None:
    """NVML answers every call on it with `GPU is lost`."""
    assert scene.docker is not None
    scene.docker.gpus.update(0, error=15)
    await scene.gateway.until(lambda page: any(gpu["problem"] for gpu in page["gpus"]))


async def gpu_comes_back(scene: Scene) -> None:
    assert scene.docker is not None
    scene.docker.gpus.update(0, error=0)
    await scene.gateway.until(lambda page: not any(gpu["problem"] for gpu in page["gpus"]))
    await scene.nothing_left()


async def strangers_take_the_memory(scene: Scene) -> None:
    """All that is free, on every GPU."""
    assert scene.docker is not None
    gpus = scene.docker.gpus
    for gpu in gpus.gpus():
        scene.lasts.callback(gpus.take(gpu, gpu.free_mib, "stranger").release)
    await scene.gateway.until(lambda page: all(gpu["foreign_mib"] > GPU_RESERVED_MIB for gpu in page["gpus"]))


async def strangers_leave(scene: Scene) -> None:
    await scene.lasts.aclose()
    await scene.gateway.until(lambda page: all(gpu["foreign_mib"] <= GPU_RESERVED_MIB for gpu in page["gpus"]))
    await scene.nothing_left()


async def driver_goes(scene: Scene) -> None:
    """NVML answers `Unknown Error`, and if it is started anew `Driver Not Loaded`."""
    assert scene.docker is not None
    scene.docker.break_driver(init_error=9, error=999)
    await scene.gateway.until(lambda page: all(gpu["problem"] for gpu in page["gpus"]))
    await _degraded(scene, "GPU")


async def driver_comes_back(scene: Scene) -> None:
    assert scene.docker is not None
    scene.docker.break_driver(init_error=0, error=0)
    await scene.gateway.until(lambda page: not any(gpu["problem"] for gpu in page["gpus"]))
    await scene.nothing_left()


def and_it_is_served(room_comes_back: Act) -> Act:
    """Nothing was started before there was room."""

    async def afterwards(scene: Scene) -> None:
        assert not scene.gateway.events("instance_starting", model=scene.model)
        await room_comes_back(scene)
        assert (await scene.gateway.chat(scene.model))[0] == 200
        await scene.started()

    return afterwards


async def docker_goes_away(scene: Scene) -> None:
    assert scene.docker is not None
    await scene.docker.gate.shut()


async def docker_goes_away_for_a_while(scene: Scene) -> None:
    assert scene.docker is not None
    await scene.docker.gate.shut()
    coming_back = asyncio.create_task(scene.docker.open_after(_AWAY_S))
    scene.lasts.push_async_callback(asyncio.wait, {coming_back})


async def docker_comes_back(scene: Scene) -> None:
    """And what ends from now on is noticed again, and replaced."""
    assert scene.docker is not None
    await scene.docker.gate.open()
    scene.target.signal(signal.SIGKILL)
    await scene.gateway.event("instance_failed", instance=scene.target.name, model=scene.model)
    await scene.nothing_left()


def docker_restarts(by: signal.Signals, *, live_restore: bool) -> Act:
    """It is away long enough to be missed. Engines that it does not keep cannot be told anything any more."""

    async def strike(scene: Scene) -> None:
        assert scene.docker is not None
        for engine in scene.engines:
            engine.out_of_reach = not live_restore
        await scene.docker.restart(by, live_restore=live_restore, meanwhile=lambda: _degraded(scene))

    return strike


async def _degraded(scene: Scene, part: str = "runtime") -> None:
    await scene.gateway.until(lambda page: any(problem.startswith(part) for problem in page["problems"]))
    async with scene.gateway.http.get("/health") as reply:
        assert (reply.status, (await reply.json())["status"]) == (200, "degraded")


async def same_engines_go_on(scene: Scene) -> None:
    """Nothing was started twice, nor anew."""
    await scene.nothing_left()
    assert scene.docker is not None
    assert {engine.pid for engine in scene.engines} <= set(scene.docker.engine_pids().values())


async def new_engines_run(scene: Scene) -> None:
    """That the engines ended is nothing against a model in the next cell; those of other models ended, too."""
    page = await scene.gateway.status()
    for name in [name for name, model in page["models"].items() if model["failures"]]:
        async with scene.gateway.http.post(f"/gateway/models/{name}/retry") as reply:
            assert reply.status == 200
    await scene.nothing_left()


async def container_runs_out_of_memory(scene: Scene) -> None:
    """The kernel kills the engine: a body came that does not fit into what the container may have."""
    assert scene.docker is not None
    await scene.docker.limit_memory(scene.target.name, 96)
    scene.target.out_of_reach = True
    body = io.BytesIO(b" " * (150 << 20))
    with suppress(aiohttp.ClientError):
        async with scene.target.http.post("/tokenize", data=body):
            pass


async def nothing(scene: Scene) -> None:
    """The fault is in the model's settings."""


async def start_has_failed(scene: Scene) -> None:
    assert (await scene.gateway.chat(scene.model))[0] == 503


async def footprint_was_corrected(scene: Scene) -> None:
    """And both instances run with it."""
    scene.footprint_mib = scene.gateway.events("footprint_corrected", model=scene.model)[-1]["footprint_mib"]
    await scene.started()


async def nobody_was_blamed(scene: Scene) -> None:
    finished = [line for line in scene.gateway.events("request_finished", model=scene.model) if line["status"] == 400]
    assert {line["attempts"] for line in finished} == {1}
    assert not scene.gateway.events("instance_suspect", model=scene.model)
    assert not scene.gateway.events("instance_ejected", model=scene.model)
    await scene.nothing_left()
