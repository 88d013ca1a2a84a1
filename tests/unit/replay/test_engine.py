# SPDX-License-Identifier: Apache-2.0
"""The simulated engine: cases worked out by hand, and the step-by-step reference on random traffic."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.replay.reference import ReferenceEngine
from vllm_gateway.replay.engine import EngineOptions, Sequence, SimulatedEngine
from vllm_gateway.replay.timing import Timing
from vllm_gateway.replay.trace import TracedRequest

PLAIN = Timing(step_s=1.0, sequence_s=0.0, context_token_s=0.0, prefill_token_s=0.1, attention_pair_s=0.0)


def options(blocks: int = 100, max_sequences: int = 4, step_tokens: int = 40, timing: Timing = PLAIN) -> EngineOptions:
    return EngineOptions(blocks, 10, max_sequences, step_tokens, timing)


def run(requests: list[TracedRequest], chosen: EngineOptions) -> tuple[list[tuple[float, float]], SimulatedEngine]:
    """For each request its time to first token and its end."""
    first: dict[Sequence, float] = {}
    end: dict[Sequence, float] = {}
    order: list[Sequence] = []

    def advance(engine: SimulatedEngine) -> None:
        assert engine.next_s is not None
        now = engine.next_s
        end.update((sequence, now) for sequence in engine.advance())

    engine = SimulatedEngine(chosen, lambda sequence: first.update({sequence: engine.next_s or 0.0}))
    for request in requests:
        while engine.next_s is not None and engine.next_s < request.arrival_s:
            advance(engine)
        order.append(engine.submit(request, request.arrival_s))
    while engine.next_s is not None:
        advance(engine)
    return [(first[one] - one.request.arrival_s, end[one]) for one in order], engine


def asked(arrival_s: float, tokens: int, reply: int, *blocks: int) -> TracedRequest:
    return TracedRequest(arrival_s, tokens, reply, blocks)


def test_a_request_alone_takes_its_prefill_and_one_step_a_token() -> None:
    ((ttft, end),), engine = run([asked(5, 30, 4, 1, 2, 3)], options())
    assert ttft == pytest.approx(1 + 30 * 0.1)
    assert end == pytest.approx(5 + 4 + 3 * 1)
    assert engine.busy_s == pytest.approx(7)


def test_a_long_prompt_is_read_in_chunks() -> None:
    ((ttft, _),), _ = run([asked(0, 100, 1)], options())
    assert ttft == pytest.approx(3 + 100 * 0.1)  # steps of 40, 40 and 20 tokens


def test_what_is_cached_is_not_read_again_but_for_the_last_token() -> None:
    times, engine = run([asked(0, 30, 1, 1, 2, 3), asked(10, 30, 1, 1, 2, 3), asked(20, 30, 1, 1, 2, 4)], options())
    assert [ttft for ttft, _ in times] == pytest.approx([4.0, 1.1, 2.0])
    assert engine.cached_tokens == 29 + 20


def test_a_newcomer_waits_for_the_step_under_way_and_slows_the_others() -> None:
    times, _ = run([asked(0, 10, 10), asked(4.5, 20, 1)], options())
    # the first token at 2, then a step a second; the newcomer's step begins at 5 and takes 1 + 2
    assert [*times[0], *times[1]] == pytest.approx([2, 8 + 5, 3.5, 8])


def test_no_more_sequences_than_allowed_run_at_once() -> None:
    times, _ = run([asked(0, 10, 5), asked(0, 10, 5)], options(max_sequences=1))
    assert [*times[0], *times[1]] == pytest.approx([2, 6, 8, 12])


def test_a_prompt_without_room_waits_until_another_has_ended() -> None:
    times, engine = run([asked(0, 60, 5, *range(6)), asked(0, 50, 1, *range(10, 15))], options(blocks=10))
    assert times[1][0] > times[0][1] - 1
    assert engine.preemptions == 0


def test_replies_that_outgrow_the_memory_preempt_the_latest_and_all_are_served() -> None:
    times, engine = run([asked(0, 30, 60, 1, 2, 3), asked(0, 30, 60, 4, 5, 6)], options(blocks=10))
    assert engine.preemptions >= 1
    assert times[1][1] > times[0][1]
    assert engine.cache.used_tokens == 0


def test_the_least_recently_used_blocks_make_way_the_tail_first() -> None:
    requests = [asked(0, 30, 1, 1, 2, 3), asked(10, 80, 1, *range(10, 18)), asked(30, 30, 1, 1, 2, 3)]
    times, engine = run(requests, options(blocks=10))
    assert engine.cached_tokens == 10  # 10 blocks, 8 of them for the second and one for its reply: one is left of three
    assert times[2][0] == pytest.approx(1 + 20 * 0.1)


@st.composite
def traffic(draw: st.DrawFn) -> list[TracedRequest]:
    """Conversations that branch: a block is known by all that comes before it."""
    requests, now = [], 0.0
    for _ in range(draw(st.integers(1, 12))):
        now += draw(st.sampled_from([0.0, 0.13, 1.07, 9.01, 60.0]))
        path = draw(st.lists(st.integers(1, 2), max_size=4))
        blocks = tuple(int("".join(map(str, path[: end + 1]))) for end in range(len(path)))
        tokens = max(1, len(blocks) * 10 - draw(st.integers(0, 9)) if draw(st.booleans()) else len(blocks) * 10 + 7)
        requests.append(TracedRequest(now, tokens, draw(st.integers(0, 30)), blocks))
    return requests


@given(traffic(), st.integers(8, 30), st.integers(1, 4), st.sampled_from([5, 16, 64]))
@settings(max_examples=300, deadline=None)
def test_many_steps_made_as_one_are_the_same_as_step_by_step(
    requests: list[TracedRequest], blocks: int, sequences: int, step_tokens: int
) -> None:
    timing = Timing(step_s=1.003, sequence_s=0.017, context_token_s=0.0013, prefill_token_s=0.11, attention_pair_s=1e-3)
    chosen = options(blocks, sequences, step_tokens, timing)
    times, engine = run(requests, chosen)
    reference = ReferenceEngine(chosen)
    expected = [(one.ttft_s, one.end_s) for one in reference.run(requests)]
    assert [ttft for ttft, _ in times] == pytest.approx([ttft for ttft, _ in expected])
    assert [end for _, end in times] == pytest.approx([end for _, end in expected])
    assert engine.preemptions == reference.preemptions
    assert engine.cache.used_tokens == 0
