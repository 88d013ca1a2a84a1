# SPDX-License-Identifier: Apache-2.0
"""Requests that one instance alone can serve: they wait for a place there, hold nobody up, and are told if it goes."""

import asyncio

import pytest

from tests.unit.scheduling.bench import Bench, request
from tests.waiting import until
from vllm_gateway.routing import Refusal
from vllm_gateway.scheduling import InstanceView, Outcome, Refused


async def waits(bench: Bench, name: str, instance_id: str, **headers: str) -> "asyncio.Task[InstanceView]":
    before = bench.queue.waiting
    task = asyncio.create_task(bench.queue.acquire_at(instance_id, request(name, **headers)))
    await until(lambda: bench.queue.waiting == before + 1)
    return task


async def refused(task: "asyncio.Task[InstanceView]") -> str:
    with pytest.raises(Refused) as raised:
        await task
    return raised.value.refusal.code


async def test_a_free_place_there_is_taken_at_once_whatever_the_strategy_would_choose() -> None:
    bench = Bench()
    bench.publish("i1", "i2")
    attempt = bench.queue.acquire_at("i2", request())
    with pytest.raises(StopIteration) as ended:
        attempt.send(None)
    view = ended.value.value
    assert (view.instance_id, view.in_flight) == ("i2", 1)
    assert not bench.demand.said
    bench.queue.release(view, request(), Outcome.OK)


async def test_others_pass_those_that_wait_and_a_place_there_is_theirs_first() -> None:
    bench = Bench()
    bench.publish("i1", "i2")
    here, there = await bench.queue.acquire(request("holder")), await bench.queue.acquire(request("other holder"))
    assert (here.instance_id, there.instance_id) == ("i1", "i2")
    (line,) = await bench.wait("line")
    bound = await waits(bench, "bound", "i2")
    bench.queue.release(here, request(), Outcome.OK)
    assert (await line).instance_id == "i1", "the bound one does not hold up the line"
    later = await bench.wait("later")
    bench.queue.release(there, request(), Outcome.OK)
    assert (await bound).instance_id == "i2"
    assert there.in_flight == 1, "and not two"
    bench.queue.release(there, request(), Outcome.OK)
    assert (await later[0]).instance_id == "i2"


async def test_a_suspect_is_waited_for() -> None:
    bench = Bench()
    bench.publish("i1", "i2", suspects=["i2"])
    bound = await waits(bench, "bound", "i2")
    bench.publish("i1", "i2")
    assert (await bound).instance_id == "i2"


async def test_if_the_instance_goes_they_are_told() -> None:
    bench = Bench()
    bench.publish("i1", "i2", places=0)
    bound, kept = await waits(bench, "bound", "i2"), await waits(bench, "kept", "i1")
    bench.publish("i1", places=0)
    assert await refused(bound) == "response_not_found"
    assert await refused(asyncio.create_task(bench.queue.acquire_at("i2", request()))) == "response_not_found"
    assert bench.queue.waiting == 1
    bench.queue.close(Refusal("stopping", "The end."))
    assert await refused(kept) == "stopping"
    assert await refused(asyncio.create_task(bench.queue.acquire_at("i1", request()))) == "stopping"


async def test_they_wait_no_longer_than_others_and_leave_nothing() -> None:
    bench = Bench(size=1)
    bench.publish("i1", places=0)
    assert await refused(await waits(bench, "late", "i1", x_request_timeout="0.01")) == "request_timeout"
    assert bench.queue.waiting == 0
    gone = await waits(bench, "gone", "i1")
    assert await refused(asyncio.create_task(bench.queue.acquire_at("i1", request()))) == "queue_full"
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert bench.queue.waiting == 0
    assert bench.demand.said[-1] == ("unwanted", "m")
    bench.publish("i1")
    assert (await bench.queue.acquire(request())).in_flight == 1
