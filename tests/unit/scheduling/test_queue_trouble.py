# SPDX-License-Identifier: Apache-2.0
"""The queue when instances fail requests, and when a strategy does."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.unit.scheduling.bench import Bench, First, refusal_of, request
from tests.waiting import until
from vllm_gateway.routing import Address, Refusal, RoutingTable
from vllm_gateway.scheduling import (
    InstanceView,
    NotAgain,
    Outcome,
    RequestInfo,
    Scheduler,
    health,
)


async def test_an_instance_that_failed_a_request_does_not_get_it_again_while_there_is_another() -> None:
    bench = Bench()
    bench.publish("i1", "i2")
    failed = frozenset({"i1"})
    other = await bench.queue.acquire(request("a"), failed)
    assert other.instance_id == "i2"
    (again,) = await bench.wait("again", failed=failed)
    normal = await bench.queue.acquire(request("normal"))
    assert normal.instance_id == "i1", "whoever has not failed there does not wait"
    (later,) = await bench.wait("later")
    bench.queue.release(other, request("a"), Outcome.OK)
    assert await again is other
    assert not later.done(), "one that failed has waited already: it goes first"
    bench.queue.release(normal, request("normal"), Outcome.OK)
    assert (await later).instance_id == "i1"


async def test_if_all_instances_have_failed_it_they_may_try_again() -> None:
    bench = Bench()
    bench.publish("i1", "i2")
    other = await bench.queue.acquire(request("a"), frozenset({"i1"}))
    (again,) = await bench.wait("again", failed=frozenset({"i1"}))
    bench.publish("i1")
    assert (await again).instance_id == "i1"
    assert other.instance_id == "i2"


async def test_what_comes_within_the_pause_is_taken_instead() -> None:
    bench = Bench(same_after_s=3600)
    bench.publish("i1")
    (again,) = await bench.wait("again", failed=frozenset({"i1"}))
    assert (await bench.queue.acquire(request("normal"))).instance_id == "i1"
    bench.publish("i1", places=2)
    await asyncio.sleep(0)
    assert not again.done(), "it has a free place, and has just failed this one"
    bench.publish("i1", "i2")
    assert (await again).instance_id == "i2"


async def test_a_suspect_is_spared_but_not_forgotten() -> None:
    bench = Bench()
    bench.publish("i1", "i2", places=5)
    view = await bench.queue.acquire(request())
    bench.publish("i1", "i2", places=5, suspects=["i1"])
    assert (await bench.queue.acquire(request())).instance_id == "i2"
    bench.queue.release(view, request(), Outcome.OK)
    assert ("drained", "i1") not in bench.demand.said
    assert not bench.departed
    bench.publish("i1", "i2", places=5)
    assert await bench.queue.acquire(request()) is view


I1, I2 = frozenset({"i1"}), frozenset({"i2"})


async def test_a_request_does_not_come_back_to_where_it_has_had_its_time() -> None:
    bench = Bench()
    bench.publish("i1")
    with pytest.raises(NotAgain):
        await bench.queue.acquire(request(), I1, never=I1)
    bench.publish("i1", "i2", places=2)
    other = await bench.queue.acquire(request("other"), I1, never=I1)
    assert other.instance_id == "i2"
    again = await bench.queue.acquire(request("again"), I1 | I2, never=I1)
    assert again.instance_id == "i2", "that one has only failed it"
    with pytest.raises(NotAgain):
        await bench.queue.acquire(request("both"), I1 | I2, never=I1 | I2)


async def test_it_waits_while_it_is_not_known_whether_that_one_is_dead() -> None:
    bench = Bench()
    bench.publish("i1", suspects=["i1"])
    dead, well = await bench.wait("dead", failed=I1, never=I1), await bench.wait("well", failed=I1, never=I1)
    dead[0].cancel()
    bench.publish("i1")
    with pytest.raises(NotAgain):
        await well[0]
    bench.publish("i1", suspects=["i1"])
    (successor,) = await bench.wait("successor", failed=I1, never=I1)
    bench.publish()
    bench.publish("i2")
    assert (await successor).instance_id == "i2"


async def test_it_waits_no_longer_once_there_is_nobody_else_to_wait_for() -> None:
    bench = Bench()
    bench.publish("i1", "i2")
    await bench.queue.acquire(request("busy"), I1)
    (again,) = await bench.wait("again", failed=I1, never=I1)
    bench.publish("i1")
    with pytest.raises(NotAgain):
        await again


async def test_what_a_silent_one_had_to_do_is_no_repetition() -> None:
    bench = Bench()
    bench.publish("i1", "i2", places=50)
    view = await bench.queue.acquire(request())
    assert view.instance_id == "i1"
    bench.publish("i1", "i2", places=50, silent=["i1"])
    assert bench.silent == ["i1"]
    for _ in range(40):
        assert (await bench.queue.acquire(request(), I1)).instance_id == "i2"
    assert not bench.queue.retries_denied


async def test_nobody_is_sent_away_from_a_silent_one_while_there_is_no_other() -> None:
    bench = Bench()
    bench.publish("i1")
    await bench.queue.acquire(request())
    bench.publish("i1", silent=["i1"])
    assert not bench.silent
    bench.publish("i1", "i2", silent=["i1"])
    assert bench.silent == ["i1"]


async def test_nobody_waits_on_where_the_instance_is_ended_for_its_silence() -> None:
    bench = Bench()
    bench.publish("i1")
    await bench.queue.acquire(request())
    bench.queues.publish(RoutingTable({}, silent=frozenset({"i1"}), ended=frozenset({"i1"})))
    assert bench.silent == ["i1"]


async def fail(bench: Bench, *outcomes: Outcome) -> InstanceView:
    for outcome in outcomes:
        info = request()
        view = await bench.queue.acquire(info)
        bench.queue.release(view, info, outcome)
    return view


async def test_an_ejected_instance_gets_one_request_after_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 0.2)
    bench = Bench()
    bench.publish("i1", "i2")
    sick = await fail(bench, *[Outcome.UNREACHABLE] * 3)
    assert bench.changes == [("i1", True)]
    other = await bench.queue.acquire(request())
    assert other.instance_id == "i2"
    probe, waits = (asyncio.create_task(bench.queue.acquire(request(name))) for name in ("probe", "waits"))
    assert await probe is sick, "the end of the pause is noticed, though nothing else happens"
    await until(lambda: bench.queue.waiting == 1)
    bench.queue.release(other, request(), Outcome.OK)
    assert await waits is other
    bench.publish("i1", "i2", places=5)
    assert (await bench.queue.acquire(request())) is other, "one probe at a time"


async def test_the_probe_that_succeeds_restores_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 0.0)
    bench = Bench()
    bench.publish("i1", "i2", places=5)
    await fail(bench, *[Outcome.BROKEN] * 3, Outcome.OK)
    assert bench.changes == [("i1", True), ("i1", False)]
    assert bench.queue.ejections == 1
    assert not bench.queues.is_ejected("m", "i1")


async def test_a_long_reply_that_has_begun_is_probe_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 0.0)
    bench = Bench()
    bench.publish("i1", "i2", places=5)
    await fail(bench, *[Outcome.BROKEN] * 3)
    info = request()
    view = await bench.queue.acquire(info)
    began = bench.queue.began(view, info)
    assert began is not None
    began()
    assert bench.changes == [("i1", True), ("i1", False)]
    assert bench.queue.began(view, info) is None


async def test_the_last_instance_keeps_its_requests_whatever_becomes_of_them() -> None:
    bench = Bench()
    bench.publish("i1", "i2", places=5)
    await fail(bench, *[Outcome.UNREACHABLE] * 3)
    await fail(bench, *[Outcome.UNREACHABLE] * 9)
    assert bench.changes == [("i1", True)]
    bench.publish("i1", places=5)
    assert (await bench.queue.acquire(request())).instance_id == "i1"


async def test_a_request_is_tried_again_within_limits() -> None:
    bench = Bench()
    bench.publish("i1", "i2", places=9)
    assert (bench.queue.has_tries_left(2), bench.queue.has_tries_left(3)) == (True, False)
    for _ in range(5):
        await bench.queue.acquire(request(), frozenset({"i1"}))
    for _ in range(2):
        with pytest.raises(NotAgain):
            await bench.queue.acquire(request(), frozenset({"i1"}))
    assert bench.queue.retries_denied == 2


async def spend_the_budget(bench: Bench) -> None:
    bench.publish("i1", "i2", places=9)
    for _ in range(5):
        await bench.queue.acquire(request(), frozenset({"i1"}))


async def test_the_requests_of_a_dead_instance_are_no_repetitions() -> None:
    bench = Bench()
    await spend_the_budget(bench)
    bench.publish("i2", places=9)
    assert (await bench.queue.acquire(request(), frozenset({"i1"}))).instance_id == "i2"


async def test_whether_an_instance_is_dead_is_waited_for() -> None:
    bench = Bench()
    await spend_the_budget(bench)
    bench.publish("i1", "i2", places=9, suspects=["i1"])
    (waits,) = await bench.wait("waits", failed=frozenset({"i1"}))
    bench.publish("i2", places=9)
    assert (await waits).instance_id == "i2"
    assert not bench.queue.retries_denied


async def test_who_waited_for_it_is_refused_if_it_lives() -> None:
    bench = Bench()
    await spend_the_budget(bench)
    bench.publish("i1", "i2", places=9, suspects=["i1"])
    stays, leaves = await bench.wait("stays", "leaves", failed=frozenset({"i1"}))
    leaves.cancel()
    await until(leaves.done)
    bench.publish("i1", "i2", places=9)
    with pytest.raises(NotAgain):
        await stays
    assert (bench.queue.waiting, bench.queue.retries_denied) == (0, 1)


async def test_who_waits_for_it_is_refused_with_the_others() -> None:
    bench = Bench()
    await spend_the_budget(bench)
    bench.publish("i1", "i2", places=9, suspects=["i1"])
    (waits,) = await bench.wait("waits", failed=frozenset({"i1"}))
    bench.queues.refuse("m", Refusal("no_room", "too large"))
    assert (await refusal_of(waits)).code == "no_room"


class Raises:
    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        raise ZeroDivisionError


class Stranger:
    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        return InstanceView("x", "x", "m", Address("127.0.0.1", 1), 8)


class Empties:
    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        instances.clear()  # type: ignore[attr-defined]
        raise AssertionError


@pytest.mark.parametrize("strategy", [Raises(), Stranger(), Empties()], ids=lambda one: type(one).__name__)
async def test_a_strategy_that_fails_is_reported_and_the_request_placed_in_turn(strategy: Scheduler) -> None:
    bench = Bench(strategy)
    bench.publish("i1", "i2", places=5)
    took = [(await bench.queue.acquire(request())).instance_id for _ in range(4)]
    assert sorted(took) == ["i1", "i1", "i2", "i2"]
    assert len(bench.errors) == 4
    assert sum(view.in_flight for view in bench.queue.views) == 4


async def test_a_strategy_that_fails_at_the_end_of_a_request_loses_no_place() -> None:
    class FailsAtTheEnd(First):
        def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
            raise KeyError(outcome)

    bench = Bench(FailsAtTheEnd())
    bench.publish("i1")
    view = await bench.queue.acquire(request())
    (waiting,) = await bench.wait("a")
    bench.queue.release(view, request(), Outcome.UNREACHABLE)
    assert await waiting is view
    assert len(bench.errors) == 1
    assert (view.failures, view.total) == (1, 2)
