# SPDX-License-Identifier: Apache-2.0
"""Random arrivals, cancellations, failures and tables: no place is lost or doubled, and all counters end at zero."""

import asyncio
from collections.abc import Sequence
from random import Random
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduling.bench import Bench, request
from tests.waiting import LIMIT_S
from vllm_gateway.routing import Refusal
from vllm_gateway.scheduling import InstanceView, Lost, NotAgain, Outcome, Refused, quarantine

OUTCOMES = list(Outcome)

NAMES = ("i1", "i2", "i3")
MOST_PLACES = 3
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.integers(0, 3)),
        st.tuples(st.just("come_again"), st.sets(st.sampled_from(NAMES), min_size=1, max_size=2)),
        st.tuples(st.just("lose"), st.sampled_from([*NAMES, "dead"])),
        st.tuples(st.just("leave"), st.integers(0, 99)),
        st.tuples(st.just("finish"), st.integers(0, 99)),
        st.tuples(st.just("publish"), st.sets(st.sampled_from(NAMES))),
        st.tuples(st.just("refuse"), st.none()),
        st.tuples(st.just("turn"), st.none()),
    ),
    max_size=60,
)


class Requests:
    """What became of each request, as its own task sees it."""

    def __init__(self, random: Random) -> None:
        self.bench = Bench(size=8)
        self.random = random
        self.tasks: list[asyncio.Task[None]] = []
        self.held: list[tuple[InstanceView, asyncio.Event]] = []

    def come(self, client: int, failed: Sequence[str] = (), *, lost: bool = False) -> None:
        headers = {"x_priority": ("high", "normal", "low", "?")[client]}
        self.tasks.append(asyncio.create_task(self._one(str(client), frozenset(failed), headers, lost)))

    async def _one(self, client: str, failed: frozenset[str], headers: dict[str, str], is_lost: bool) -> None:
        info = request(f"r{len(self.tasks)}", client, **headers)
        try:
            lost = Lost(min(failed), self.random.random() * 4, failed) if is_lost else None
            view = await self.bench.queue.acquire(info, failed, lost=lost)
        except (Refused, NotAgain):
            return
        done = asyncio.Event()
        self.held.append((view, done))
        if (began := self.bench.queue.began(view, info)) and self.random.random() < 0.5:
            began()
        try:
            await done.wait()
        finally:
            self.held.remove((view, done))
            self.bench.queue.release(view, info, self.random.choice(OUTCOMES))

    def check(self) -> None:
        for view in self.bench.queue.views:
            assert 0 <= view.in_flight <= MOST_PLACES

    async def end(self) -> None:
        """All instances are there, and every request that has a place ends: all must have had one."""
        self.bench.publish(*NAMES)
        async with asyncio.timeout(LIMIT_S):
            while not all(task.done() for task in self.tasks):
                for _, done in self.held:
                    done.set()
                await asyncio.sleep(0)


@given(STEPS, st.integers())
def test_no_place_is_lost_or_doubled(steps: list[tuple[str, object]], seed: int) -> None:
    with patch.object(quarantine, "DOUBTED_S", 0.0):
        asyncio.run(run(steps, Random(seed)))


async def run(steps: list[tuple[str, object]], random: Random) -> None:
    requests = Requests(random)
    bench = requests.bench
    for step in steps:
        match step:
            case ("come", int(client)):
                requests.come(client)
            case ("come_again", set(failed)):
                requests.come(1, sorted(failed))
            case ("lose", str(name)):
                requests.come(1, [name], lost=True)
            case ("leave", int(number)) if requests.tasks:
                requests.tasks[number % len(requests.tasks)].cancel()
            case ("finish", int(number)) if requests.held:
                requests.held[number % len(requests.held)][1].set()
            case ("publish", set(names)):
                suspects = [name for name in sorted(names) if random.random() < 0.3]
                bench.publish(*sorted(names), places=random.randint(1, MOST_PLACES), suspects=suspects)
            case ("refuse", _):
                bench.queues.refuse("m", Refusal("no_room", "too large"))
            case ("turn", _):
                for _ in range(random.randint(1, 4)):
                    await asyncio.sleep(0)
        requests.check()
    await requests.end()
    assert bench.nothing_is_left()
    assert not [task.exception() for task in requests.tasks if not task.cancelled() and task.exception()]
    wants = [said for said, _ in bench.demand.said if said in ("wanted", "unwanted")]
    assert not wants or wants[-1] == "unwanted"
