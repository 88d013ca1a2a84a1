# SPDX-License-Identifier: Apache-2.0
"""A queue gives each request one place, in fair order, and loses none whatever the clients do."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from vllm_gateway.routing import Refusal, Route, RoutingTable
from vllm_gateway.scheduling import (
    InstanceView,
    ModelQueue,
    Outcome,
    Placement,
    Queues,
    QueueSettings,
    Refused,
    RequestInfo,
    Scheduler,
    health,
)
from vllm_gateway.settings import Retry


@dataclass
class RecordedDemand:
    said: list[tuple[str, str]] = field(default_factory=list)

    def wanted(self, model: str) -> None:
        self.said.append(("wanted", model))

    def unwanted(self, model: str) -> None:
        self.said.append(("unwanted", model))

    def start_share(self, model: str) -> float | None:
        return None

    def expected_start_s(self, model: str) -> float:
        return 42.0

    def drained(self, instance_id: str) -> None:
        self.said.append(("drained", instance_id))

    def suspect(self, instance_id: str, reason: str) -> None:
        self.said.append(("suspect", instance_id))


class First:
    def __init__(self) -> None:
        self.ended: list[tuple[str, Outcome]] = []

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        return instances[0]

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        self.ended.append((request.request_id, outcome))


def request(name: str = "r", client: str = "", **headers: str) -> RequestInfo:
    raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    return RequestInfo(name, "m", "/v1/completions", False, b"{}", raw, client)


class Bench:
    """One model's queue, with what it said and whom it placed."""

    def __init__(
        self,
        strategy: Scheduler | None = None,
        *,
        size: int = 10,
        timeout_s: float = 60.0,
        same_after_s: float = 0.0,
    ) -> None:
        self.demand = RecordedDemand()
        self.strategy = strategy or First()
        self.errors: list[Exception] = []
        self.departed: list[str] = []
        self.changes: list[tuple[str, bool]] = []
        self.queues = Queues(
            {"m": Placement(self.strategy, failed=self.errors.append, clock=time.monotonic)},
            self.demand,
            QueueSettings(
                size,
                timeout_s,
                {"high": 10, "normal": 0, "low": -10},
                Retry(attempts=3, floor=5, same_after_s=same_after_s),
            ),
            departed=lambda view: self.departed.append(view.instance_id),
            health_changed=lambda view, change: self.changes.append((view.name, change.ejected)),
        )
        self.placed: list[str] = []

    @property
    def queue(self) -> ModelQueue:
        return self.queues.of("m")

    def publish(self, *names: str, places: int = 1, suspects: Sequence[str] = ()) -> None:
        routes = tuple(Route(name, name, "m", "127.0.0.1", 8000, places, suspect=name in suspects) for name in names)
        self.queues.publish(RoutingTable({"m": routes}))

    async def wait(
        self, *requests: str | RequestInfo, failed: frozenset[str] = frozenset()
    ) -> list["asyncio.Task[InstanceView]"]:
        """Requests that wait, in this order."""
        before = self.queue.waiting
        infos = [one if isinstance(one, RequestInfo) else request(one) for one in requests]
        tasks = [asyncio.create_task(self._acquire(info, failed)) for info in infos]
        await until(lambda: self.queue.waiting == before + len(requests))
        return tasks

    async def _acquire(self, info: RequestInfo, failed: frozenset[str]) -> InstanceView:
        view = await self.queue.acquire(info, failed)
        self.placed.append(info.request_id)
        return view

    async def served(self, view: InstanceView, count: int) -> str:
        """The names of those who have the place one after the other, if each gives it back."""
        before = len(self.placed)
        for number in range(1, count + 1):
            self.queue.release(view, request(), Outcome.OK)
            await until(lambda number=number: len(self.placed) == before + number)  # type: ignore[misc]
        return "".join(self.placed[before:])

    def nothing_is_left(self) -> bool:
        return not self.queue.waiting and not any(view.in_flight for view in self.queue.views)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def refusal_of(task: "asyncio.Task[InstanceView]") -> Refusal:
    with pytest.raises(Refused) as caught:
        await task
    return caught.value.refusal


async def test_a_free_place_is_taken_without_waiting() -> None:
    bench = Bench()
    bench.publish("i1")
    attempt = bench.queue.acquire(request())
    with pytest.raises(StopIteration) as ended:
        attempt.send(None)
    assert ended.value.value.in_flight == 1
    assert not bench.demand.said


async def test_first_come_first_served_as_places_come_back() -> None:
    bench = Bench()
    bench.publish("i1")
    view = await bench.queue.acquire(request("holder"))
    tasks = await bench.wait("a", "b", "c")
    for served in ("a", "ab", "abc"):
        bench.queue.release(view, request(), Outcome.OK)
        await until(lambda served=served: "".join(bench.placed) == served)  # type: ignore[misc]
        assert view.in_flight == 1
    assert {(await task).instance_id for task in tasks} == {"i1"}


async def test_a_new_table_serves_those_who_wait() -> None:
    bench = Bench()
    tasks = await bench.wait("a", "b", "c")
    assert bench.demand.said[0] == ("wanted", "m")
    bench.publish("i1", "i2")
    await until(lambda: bench.placed == ["a", "b"])
    assert [(await task).instance_id for task in tasks[:2]] == ["i1", "i2"]
    assert bench.queue.waiting == 1
    bench.publish("i1", "i2", "i3")
    assert (await tasks[2]).instance_id == "i3"
    assert bench.demand.said[-1] == ("unwanted", "m")


async def test_nobody_overtakes_those_who_wait() -> None:
    bench = Bench()
    bench.publish("i1")
    view = await bench.queue.acquire(request("holder"))
    (first,) = await bench.wait("first")
    bench.queue.release(view, request(), Outcome.OK)
    (second,) = [asyncio.create_task(bench.queue.acquire(request("second")))]
    assert (await first) is view
    assert not second.done()
    bench.queue.release(view, request(), Outcome.OK)
    assert (await second) is view


async def test_each_client_has_its_turn() -> None:
    bench = Bench()
    bench.publish("i1")
    view = await bench.queue.acquire(request("holder"))
    tasks = await bench.wait(*(request(name, client="greedy") for name in "abc"), request("x", client="modest"))
    assert await bench.served(view, 4) == "axbc"
    await asyncio.gather(*tasks)


async def test_priority_is_what_the_header_says_and_the_settings_know() -> None:
    bench = Bench()
    bench.publish("i1")
    view = await bench.queue.acquire(request("holder"))
    waiting = [
        request("l", x_priority="low"),
        request("n"),
        request("u", x_priority="9000"),
        request("h", x_priority="HIGH"),
    ]
    tasks = await bench.wait(*waiting)
    assert await bench.served(view, 4) == "hnul"
    await asyncio.gather(*tasks)


async def test_a_full_queue_refuses_at_once() -> None:
    bench = Bench(size=1)
    (waiting,) = await bench.wait("a")
    with pytest.raises(Refused) as caught:
        await bench.queue.acquire(request("b"))
    assert caught.value.refusal.code == "queue_full"
    assert bench.queue.waiting == 1
    waiting.cancel()
    await until(waiting.done)


async def test_a_wait_has_a_limit() -> None:
    bench = Bench(timeout_s=0.01)
    with pytest.raises(Refused) as caught:
        await bench.queue.acquire(request())
    assert caught.value.refusal.code == "queue_timeout"
    assert caught.value.refusal.retry_after_s == 42
    assert bench.demand.said == [("wanted", "m"), ("unwanted", "m")]
    assert bench.nothing_is_left()


@pytest.mark.parametrize(
    ("timeout_s", "asked", "code"),
    [(60, "0.01", "request_timeout"), (60, "0", "request_timeout"), (0.01, "60", "queue_timeout")],
)
async def test_a_client_may_ask_for_a_shorter_limit(timeout_s: float, asked: str, code: str) -> None:
    bench = Bench(timeout_s=timeout_s)
    with pytest.raises(Refused) as caught:
        await bench.queue.acquire(request(x_request_timeout=asked))
    assert caught.value.refusal.code == code


@pytest.mark.parametrize("asked", ["soon", "-1", "nan", ""])
async def test_a_limit_that_is_none_is_ignored(asked: str) -> None:
    bench = Bench(timeout_s=0.01)
    with pytest.raises(Refused) as caught:
        await bench.queue.acquire(request(x_request_timeout=asked))
    assert caught.value.refusal.code == "queue_timeout"


async def test_earlier_waits_count() -> None:
    bench = Bench(timeout_s=60)
    with pytest.raises(Refused):
        await bench.queue.acquire(request(), frozenset({"i1"}), waited_s=60.0)


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


async def fail(bench: Bench, *outcomes: Outcome) -> InstanceView:
    for outcome in outcomes:
        info = request()
        view = await bench.queue.acquire(info)
        bench.queue.release(view, info, outcome)
    return view


async def test_an_ejected_instance_gets_one_request_after_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 0.01)
    bench = Bench()
    bench.publish("i1", "i2")
    sick = await fail(bench, *[Outcome.UNREACHABLE] * 3)
    assert bench.changes == [("i1", True)]
    other = await bench.queue.acquire(request())
    assert other.instance_id == "i2"
    probe, waits = await bench.wait("probe", "waits")
    assert await probe is sick, "the end of the pause is noticed, though nothing else happens"
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


async def test_new_settings_hold_for_those_who_come_from_now_on() -> None:
    bench = Bench(size=1)
    await bench.wait("a")
    bench.queues.configure({"m": bench.queue.placement}, QueueSettings(2, 60.0, retry=Retry(attempts=1)))
    await bench.wait("b")
    with pytest.raises(Refused):
        await bench.queue.acquire(request("c"))
    assert not bench.queue.may_try_again(1)
    bench.publish("i1", "i2")
    await until(lambda: bench.placed == ["a", "b"])


async def test_a_request_is_tried_again_within_limits() -> None:
    bench = Bench()
    assert not bench.queue.may_try_again(3)
    assert [bench.queue.may_try_again(1) for _ in range(7)] == [True] * 5 + [False] * 2
    assert bench.queue.retries_denied == 2


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


class Raises:
    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        raise ZeroDivisionError


class Stranger:
    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        return InstanceView("x", "x", "m", "127.0.0.1", 1, 8)


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
