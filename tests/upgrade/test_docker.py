# SPDX-License-Identifier: Apache-2.0
"""An upgrade and its way back with engines in containers: who runs goes on running, and serves."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from tests.docker.test_gateway import config, model
from tests.gateway import CHAT, GatewayProcess
from tests.integration.test_take_over import ended
from tests.lab.docker_api import DockerApi
from tests.lab.lab import Lab
from tests.load import Load
from tests.upgrade.releases import Releases
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.long]


@pytest.fixture
def both(lab: Lab, releases: Releases) -> Iterator[Releases]:
    """`a` is declared, `m` has to be measured, `c` is what the new release starts."""
    lab.reset_gpus(3, 40_000)
    models = {"a": model("a"), "m": model("m-4b", footprint_mib=None), "c": model("c")}
    with lab.nothing_left():
        yield replace(releases, settings=config(lab, **models), environment={**lab.environment, **releases.environment})


def engines(lab: Lab) -> dict[str, tuple[str, str]]:
    """model -> its container, and since when that runs."""
    docker = DockerApi(lab.place.socket)
    looked_at = [docker.get(f"/containers/{one['Id']}/json") for one in lab.containers("vllm-gateway.owner")]
    return {one["Config"]["Labels"]["vllm-gateway.model"]: (one["Id"], one["State"]["StartedAt"]) for one in looked_at}


@asynccontextmanager
async def never_failing(url: str) -> AsyncIterator[list[Load]]:
    """Clients of what the old release has started; not one of their requests fails in the block."""
    loads = [Load(url, ["a", "m"]), Load(url, ["a", "m"], stream=True)]
    yield loads
    for load in loads:
        await load.more(20)
        await load.end()
        assert not load.failures


async def status_of(gateway: GatewayProcess, name: str) -> tuple[int, str]:
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    async with gateway.http.post(CHAT, json=body) as reply:
        answer = await reply.json()
        return reply.status, answer.get("error", {}).get("code", "")


async def until_gone(lab: Lab, container: str) -> None:
    await until(lambda: container not in {one["Id"] for one in lab.containers()})


async def test_there_and_back_by_taking_over(lab: Lab, both: Releases) -> None:
    async with AsyncExitStack() as gateways:
        first = await gateways.enter_async_context(both.old())
        assert (await first.chat("a"))[0] == 200
        assert (await first.chat("m"))[0] == 200
        measured = (await first.event("footprint_measured", model="m"))["footprint_mib"]
        started = engines(lab)
        async with never_failing(first.url):
            second = await gateways.enter_async_context(both.new(over=first))
            await ended(first)
            assert len(second.events("instance_adopted")) == 2
            assert list((await second.status())["known_footprints_mib"].values()) == [measured]
            assert (await second.chat("c"))[0] == 200
            of_new = engines(lab)
            assert {name: of_new[name] for name in "am"} == started
            third = await gateways.enter_async_context(both.old(over=second))
            await ended(second)
            # It can reach no engine that listens on a socket: it takes it for one with other settings.
            assert await status_of(third, "c") in ((200, ""), (503, "model_start_failed"))
            await until_gone(lab, of_new["c"][0])
            assert (await third.chat("c"))[0] == 200
        assert {name: engines(lab)[name] for name in "am"} == started
        assert not third.events("footprint_measured")
        fourth = await gateways.enter_async_context(both.new(over=third))
        await ended(third)
        of_old = engines(lab)
        assert {name: of_old[name] for name in "am"} == started
        for name in "amc":
            assert (await fourth.chat(name))[0] == 200
        assert engines(lab) == of_old
        assert not fourth.events("instance_starting")


async def test_there_and_back_by_stopping_and_starting(lab: Lab, both: Releases) -> None:
    async with both.old() as gateway:
        await gateway.chat("a")
        await gateway.chat("m")
        await gateway.event("footprint_measured", model="m")
    started = engines(lab)
    async with both.new() as gateway:
        for name in "amc":
            assert (await gateway.chat(name))[0] == 200
        of_new = engines(lab)
        assert {name: of_new[name] for name in "am"} == started
    async with both.old() as gateway:
        for name in "amc":
            assert (await gateway.chat(name))[0] == 200
        assert len(gateway.events("instance_removed_stale")) == 1
        of_old = engines(lab)
        assert of_old["c"] != of_new["c"]
        assert {name: of_old[name] for name in "am"} == started
    async with both.new() as gateway:
        for name in "amc":
            assert (await gateway.chat(name))[0] == 200
    assert engines(lab) == of_old
