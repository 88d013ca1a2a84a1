# SPDX-License-Identifier: Apache-2.0
"""The queue: places at once or in turn, and never more than there are."""

import asyncio

import pytest

from tests.unit.scheduling.bench import Bench, refusal_of, request
from tests.waiting import until
from vllm_gateway.configuration.settings import Retry
from vllm_gateway.routing import Refusal
from vllm_gateway.scheduling import (
    Outcome,
    QueueSettings,
    Refused,
)


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


async def test_one_client_cannot_fill_the_queue_for_the_others() -> None:
    bench = Bench(size=300)
    greedy = await bench.wait(*[request(f"g{number}", "greedy") for number in range(300)])
    modest = [asyncio.create_task(bench.queue.acquire(request(f"m{number}", f"m{number}"))) for number in range(5)]
    await until(lambda: sum(task.done() for task in greedy) == 5)
    assert {(await refusal_of(task)).code for task in greedy[-5:]} == {"queue_full"}
    assert not any(task.done() for task in (*modest, *greedy[:-5]))
    with pytest.raises(Refused):
        await bench.queue.acquire(request("g", "greedy"))
    assert bench.queue.waiting == 300
    bench.queue.refuse(Refusal("no_room", "too large"))
    await asyncio.gather(*modest, *greedy, return_exceptions=True)
    assert bench.nothing_is_left()


async def test_a_low_priority_makes_way_for_a_high_one() -> None:
    bench = Bench(size=2)
    low, normal = await bench.wait(request("l", "a", x_priority="low"), request("n", "b"))
    high = asyncio.create_task(bench.queue.acquire(request("h", "b", x_priority="high")))
    assert (await refusal_of(low)).code == "queue_full"
    with pytest.raises(Refused):
        await bench.queue.acquire(request("l", "c", x_priority="low"))
    for task in (normal, high):
        task.cancel()
    await until(lambda: normal.done() and high.done())
    assert bench.nothing_is_left()


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


async def test_new_settings_hold_for_those_who_come_from_now_on() -> None:
    bench = Bench(size=1)
    await bench.wait("a")
    bench.queues.configure({"m": bench.queue.placement}, QueueSettings(2, 60.0, retry=Retry(attempts=1)))
    await bench.wait("b")
    with pytest.raises(Refused):
        await bench.queue.acquire(request("c"))
    assert not bench.queue.has_tries_left(1)
    bench.publish("i1", "i2")
    await until(lambda: bench.placed == ["a", "b"])


async def test_what_shows_that_an_engine_works() -> None:
    """A whole reply that took its work: no error, none that its front alone can give."""
    bench = Bench()
    bench.publish("i1", places=9)
    for outcome, path in [
        (Outcome.UNREACHABLE, "/v1/completions"),
        (Outcome.CLIENT_ERROR, "/v1/completions"),
        (Outcome.OK, "/tokenize"),
    ]:
        info = request()
        info.path = path
        bench.queue.release(await bench.queue.acquire(info), info, outcome)
        assert bench.queues.heard_at("i1") is None
    bench.queue.release(await bench.queue.acquire(request()), request(), Outcome.OK)
    assert bench.queues.heard_at("i1") is not None
