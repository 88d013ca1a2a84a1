# SPDX-License-Identifier: Apache-2.0
"""Clients that leave the queue, and instances that leave the table."""

import asyncio
from collections.abc import Callable

import pytest

from tests.unit.scheduling.bench import Bench, First, refusal_of, request
from tests.waiting import until
from vllm_gateway.routing import Refusal, RoutingTable
from vllm_gateway.scheduling import (
    Outcome,
)


async def test_only_the_last_client_that_leaves_is_reported() -> None:
    bench = Bench()
    first, second = await bench.wait("a", "b")
    first.cancel()
    await until(first.done)
    assert ("unwanted", "m") not in bench.demand.said
    second.cancel()
    await until(second.done)
    assert bench.demand.said[-1] == ("unwanted", "m")
    bench.publish("i1")
    assert bench.nothing_is_left()


@pytest.mark.parametrize("place_first", [True, False])
async def test_a_place_that_comes_as_the_client_leaves_goes_to_the_next(place_first: bool) -> None:
    bench = Bench()
    leaving, staying = await bench.wait("leaving", "staying")
    steps: list[Callable[[], object]] = [lambda: bench.publish("i1"), leaving.cancel]
    for step in steps if place_first else reversed(steps):
        step()
    view = await staying
    assert leaving.cancelled()
    assert view.in_flight == 1
    bench.queue.release(view, request("staying"), Outcome.OK)
    assert bench.nothing_is_left()
    assert isinstance(bench.strategy, First)
    assert bench.strategy.ended[:-1] == ([("leaving", Outcome.CLIENT_GONE)] if place_first else [])


async def test_a_place_that_comes_as_the_wait_ends_is_given_back() -> None:
    bench = Bench(timeout_s=0.01)
    (task,) = await bench.wait("a")
    asyncio.get_running_loop().call_later(0.01, bench.publish, "i1")  # both timers are due at nearly one time
    await asyncio.wait([task])
    await until(lambda: bool(bench.queue.views))
    if task.exception() is None:
        bench.queue.release(task.result(), request("a"), Outcome.OK)
    assert bench.nothing_is_left()
    assert bench.demand.said[-1] == ("unwanted", "m")


async def test_a_refusal_ends_all_who_wait() -> None:
    bench = Bench()
    tasks = await bench.wait("a", "b")
    refusal = Refusal("no_room", "too large")
    bench.queues.refuse("m", refusal)
    assert [await refusal_of(task) for task in tasks] == [refusal, refusal]
    assert bench.demand.said[-1] == ("unwanted", "m")
    assert bench.nothing_is_left()


async def test_a_client_that_leaves_as_it_is_refused_just_leaves() -> None:
    bench = Bench()
    (task,) = await bench.wait("a")
    bench.queues.refuse("m", Refusal("no_room", "too large"))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert bench.nothing_is_left()


async def test_an_instance_that_left_the_table_is_reported_when_its_last_request_ends() -> None:
    bench = Bench()
    bench.publish("i1", "i2", places=2)
    views = [await bench.queue.acquire(request()) for _ in range(2)]
    bench.publish("i2")
    assert bench.departed == ["i1"]
    assert bench.queues.in_flight("i1") == 2
    bench.queue.release(views[0], request(), Outcome.OK)
    assert not bench.demand.said
    bench.queue.release(views[1], request(), Outcome.BROKEN)
    assert bench.demand.said == [("drained", "i1")]
    assert bench.queues.view("i1") is None
    assert bench.queues.in_flight("i1") == 0


async def test_an_idle_instance_that_left_the_table_is_forgotten() -> None:
    bench = Bench()
    bench.publish("i1")
    bench.publish()
    assert bench.queues.view("i1") is None
    assert not bench.demand.said


async def test_one_that_comes_back_still_counts_its_requests() -> None:
    bench = Bench()
    bench.publish("i1")
    view = await bench.queue.acquire(request())
    bench.publish()
    bench.publish("i1")
    assert list(bench.queue.views) == [view]
    (waiting,) = await bench.wait("a")
    bench.queue.release(view, request(), Outcome.OK)
    assert await waiting is view


async def test_the_work_on_an_engine_counts_whatever_the_engine_is_called_now() -> None:
    bench = Bench()
    bench.publish("i1", places=2)
    before = [await bench.queue.acquire(request()) for _ in range(2)]
    bench.publish()
    bench.publish("i1+", places=2)
    (now,) = bench.queue.views
    assert (now.in_flight, bench.queues.in_flight("i1+"), bench.queues.unfinished) == (2, 2, 2)
    (waiting,) = await bench.wait("a")
    bench.queue.release(before[0], request(), Outcome.OK)
    assert await waiting is now
    bench.publish()
    bench.publish("i1++", places=2)
    assert bench.queue.views[0].in_flight == 2
    (waiting,) = await bench.wait("b")
    bench.queue.release(before[1], request(), Outcome.BROKEN)
    bench.queue.release(now, request(), Outcome.OK)
    assert bench.queue.views[0].in_flight == 1
    assert ("drained", "i1") in bench.demand.said
    assert ("drained", "i1+") in bench.demand.said
    bench.queue.release(await waiting, request(), Outcome.OK)
    assert bench.queues.unfinished == 0
    assert bench.nothing_is_left()


async def test_a_model_that_comes_back_waits_for_the_work_it_had() -> None:
    bench = Bench()
    bench.publish("i1")
    old, view = bench.queue, await bench.queue.acquire(request())
    settings, placement = old._settings, old.placement
    bench.queues.configure({}, settings)
    bench.queues.publish(RoutingTable())
    bench.queues.configure({"m": placement}, settings)
    bench.publish("i1+")
    assert bench.queue is not old
    (waiting,) = await bench.wait("a")
    old.release(view, request(), Outcome.OK)
    assert (await waiting).instance_id == "i1+"


async def test_what_another_gateway_has_on_an_instance_takes_its_places() -> None:
    bench = Bench()
    bench.elsewhere["i1"] = 1
    bench.publish("i1", places=2)
    view = await bench.queue.acquire(request())
    assert (view.in_flight, bench.queues.in_flight("i1")) == (2, 1)
    (waiting,) = await bench.wait("a")
    bench.elsewhere.clear()
    bench.queues.recount()
    assert await waiting is view
    assert (view.in_flight, bench.queues.in_flight("i1")) == (2, 2)
