# SPDX-License-Identifier: Apache-2.0
"""Replays: every request is answered once, the hooks are called as the gateway calls them, and a seed decides."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_gateway.replay.driver import Build, Replay, Setting, World, replay
from vllm_gateway.replay.engine import EngineOptions
from vllm_gateway.replay.report import percentile, summary, table
from vllm_gateway.replay.trace import Trace, TracedRequest
from vllm_gateway.scheduling import Address, InstanceView, Outcome, RequestInfo, make_strategy

BLOCK = 64


def trace(count: int, seed: int = 1, gap_s: float = 0.05) -> Trace:
    random = Random(seed)
    now, requests = 0.0, []
    for _ in range(count):
        now += random.expovariate(1 / gap_s)
        blocks = tuple(random.randrange(3) + 10 * depth for depth in range(random.randrange(12)))
        tail = random.randrange(1, BLOCK)
        requests.append(TracedRequest(now, len(blocks) * BLOCK + tail, random.randrange(40), blocks))
    return Trace(tuple(requests), BLOCK)


def setting(instances: int = 3, blocks: int = 200, **more: float) -> Setting:
    return Setting(instances, EngineOptions(cache_blocks=blocks, block_tokens=BLOCK), **more)  # type: ignore[arg-type]


def shipped(name: str) -> Build:
    return lambda world: make_strategy(name, clock=world.clock, random=world.random)


class Witness:
    """Draws lots, and notes what it is told."""

    wants_metrics = True

    def __init__(self, world: World) -> None:
        self.world = world
        self.told: dict[str, list[str]] = {}
        self.offered: list[int] = []

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        self.told[request.request_id] = ["choose"]
        self.offered.append(len(instances))
        assert all(view.in_flight < view.max_in_flight for view in instances)
        assert all(view.fresh_metrics(self.world.clock()) for view in instances)
        assert request.prompt.tokens > 0
        return self.world.random.choice(instances)

    def first_byte(self, request: RequestInfo, instance: InstanceView) -> None:
        self.told[request.request_id].append("first_byte")

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        assert outcome is Outcome.OK
        self.told[request.request_id].append("finished")


def witnessed(given: Trace, chosen: Setting) -> tuple[Witness, Replay]:
    made: list[Witness] = []

    def build(world: World) -> Witness:
        made.append(Witness(world))
        return made[0]

    result = replay(given, build, chosen)
    return made[0], result


@given(
    count=st.integers(1, 60),
    seed=st.integers(0, 99),
    instances=st.integers(1, 5),
    blocks=st.integers(14, 100),
    max_in_flight=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_request_is_answered_once(count: int, seed: int, instances: int, blocks: int, max_in_flight: int) -> None:
    given = trace(count, seed)
    witness, result = witnessed(given, setting(instances, blocks, max_in_flight=max_in_flight))
    assert [one.request for one in result.served] == list(given.requests)
    assert list(witness.told.values()) == [["choose", "first_byte", "finished"]] * count
    for one in result.served:
        assert 0 <= one.queued_s < one.ttft_s <= one.total_s
        assert 0 <= one.cached_tokens < one.request.input_tokens
    assert all(engine.cache.used_tokens == 0 and not engine.running for engine in result.engines.values())
    figures = summary("w", result)
    assert figures.requests == count and figures.refused == 0
    assert 0 < figures.utilization < 1 + 1e-9
    assert 1 - 1e-9 < figures.imbalance < instances + 1e-9


def test_when_all_are_full_none_is_chosen_and_the_first_come_is_the_first_served() -> None:
    witness, result = witnessed(trace(40, gap_s=0.001), setting(2, max_in_flight=2))
    assert max(one.queued_s for one in result.served) > 0
    assert sorted(witness.told, key=int) == list(witness.told)
    assert witness.offered.count(1) > 30


def test_a_request_that_fits_no_instance_is_counted_and_hurts_nobody() -> None:
    given = Trace((TracedRequest(0, 100 * BLOCK, 1, ()), TracedRequest(0, 5, 1, ())), BLOCK)
    figures = summary("r", replay(given, shipped("round_robin"), setting(blocks=50)))
    assert (figures.requests, figures.refused) == (1, 1)


@given(count=st.integers(1, 60), clients=st.integers(1, 20), max_in_flight=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_clients_ask_again_as_soon_as_they_are_answered(count: int, clients: int, max_in_flight: int) -> None:
    given = trace(count)
    witness, result = witnessed(given, setting(2, clients=clients, max_in_flight=max_in_flight))
    assert [one.request for one in result.served] == list(given.requests)
    assert list(witness.told.values()) == [["choose", "first_byte", "finished"]] * count
    asked = sorted(one.arrival_s for one in result.served)
    answered = sorted(one.arrival_s + one.total_s for one in result.served)
    assert asked[:clients] == [0.0] * min(count, clients)
    assert asked[clients:] == pytest.approx(answered[: max(0, count - clients)])


def test_clients_pass_over_what_fits_no_instance() -> None:
    given = Trace(tuple(TracedRequest(0, tokens * BLOCK, 1, ()) for tokens in (100, 1, 100, 1, 100)), BLOCK)
    figures = summary("r", replay(given, shipped("round_robin"), setting(blocks=50, clients=1)))
    assert (figures.requests, figures.refused) == (2, 3)


def test_of_a_reply_in_one_piece_nothing_is_heard_before_its_end() -> None:
    class Late(Witness):
        def first_byte(self, request: RequestInfo, instance: InstanceView) -> None:
            super().first_byte(request, instance)
            self.began_s = self.world.clock()

        def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
            super().finished(request, instance, outcome)
            assert self.began_s == self.world.clock() and not request.stream

    replay(trace(40), Late, setting(streamed=False))


def test_a_seed_decides_everything() -> None:
    def figures(seed: int) -> list[float]:
        return [one.total_s for one in witnessed(trace(80), setting(seed=seed))[1].served]

    assert figures(1) == figures(1) != figures(2)


@pytest.mark.parametrize("name", ["round_robin", "least_connections"])
def test_more_instances_are_faster_and_more_speed_is_slower(name: str) -> None:
    given = trace(300, gap_s=0.01)

    def mean_ttft(chosen: Setting) -> float:
        return summary(name, replay(given, shipped(name), chosen)).ttft_mean_s

    assert mean_ttft(setting(1)) > mean_ttft(setting(2)) > mean_ttft(setting(4))
    assert mean_ttft(setting(2, speed=2)) > mean_ttft(setting(2)) > mean_ttft(setting(2, speed=0.5))


def test_one_instance_with_room_for_all_hits_whatever_came_before() -> None:
    given = trace(200)
    result = replay(given, shipped("round_robin"), setting(1, blocks=5000))
    seen: set[int] = set()
    expected = 0
    for request in given.requests:
        leading = next((at for at, block in enumerate(request.blocks) if block not in seen), len(request.blocks))
        expected += leading * BLOCK
        seen.update(request.blocks)
    assert sum(one.cached_tokens for one in result.served) == expected


def test_a_stranger_chosen_is_an_error() -> None:
    class Stranger:
        def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
            return InstanceView("x", "x", "x", Address(), 1)

    with pytest.raises(LookupError, match="was not given"):
        replay(trace(1), lambda world: Stranger(), setting())


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile([1, 2, 3, 4], percent) for percent in (1, 25, 50, 51, 99, 100)] == [1, 1, 2, 3, 4, 4]
    assert percentile([], 50) == 0


def test_the_table_has_a_row_a_strategy() -> None:
    result = replay(trace(5), shipped("round_robin"), setting())
    head, row = table([summary("round_robin", result)]).splitlines()
    assert head.split()[0] == "strategy" and row.split()[0] == "round_robin"
    assert len(head) == len(row)


def test_prefix_aware_does_not_crowd_one_instance_with_a_popular_prefix() -> None:
    """Chats that share a long system prompt: each goes back to its home, and the homes are spread over all."""
    random = Random(4)
    requests, turns = [], dict.fromkeys(range(40), 0)
    for number in range(1200):
        chat = random.choice(list(turns))
        turns[chat] += 1
        blocks = (*range(100), *(1000 * (chat + 1) + block for block in range(4 * turns[chat])))
        requests.append(TracedRequest(number / 60, len(blocks) * BLOCK + 1, 100, blocks))
        if turns[chat] == 12:
            del turns[chat]
            turns[number + 100] = 0
    figures = summary("p", replay(Trace(tuple(requests), BLOCK), shipped("prefix_aware"), setting(8, blocks=5000)))
    assert figures.hit_rate > 0.8
    assert figures.imbalance < 1.5
