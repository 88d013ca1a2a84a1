# SPDX-License-Identifier: Apache-2.0
"""The books of an engine's prefill follow an engine of which they see only first bytes and metrics."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.scheduling import EngineMetrics, Prompt, RequestInfo
from vllm_gateway.scheduling.prefill import STEP_TOKENS, Book, Limits
from vllm_gateway.scheduling.prefix_mirror import PrefixMirror


def book(cache_tokens: int = 100_000, max_blocks: int = 10_000) -> Book:
    return Book(Limits(cache_tokens, max_blocks, 3600.0), now=0.0)


def request(tokens: int, *blocks: int, stream: bool = True) -> RequestInfo:
    made = RequestInfo.simulated("r", "m", Prompt(tokens, blocks, 128))
    made.stream = stream
    return made


def test_what_was_sent_is_cached_and_to_be_read_once() -> None:
    books = book()
    assert books.take(request(300, 1, 2), 0.0) == 0
    assert books.remaining(0.0)[0] == pytest.approx(300, rel=0.01)
    assert books.take(request(300, 1, 2), 0.0) == 256
    assert books.remaining(0.0)[0] == pytest.approx(344, rel=0.01)
    assert books.cached(Prompt(256, (1, 2), 128)) == 255, "the last token is always read"


def test_the_speed_is_learned_from_first_bytes() -> None:
    books, now = book(), 0.0
    for _ in range(200):
        one = request(1000)
        books.take(one, now)
        now += 0.5
        books.read(one, now)
        now += 3.0  # idle
    assert books.tokens_per_s == pytest.approx((1000 + STEP_TOKENS) / 0.5, rel=0.1)
    books.take(request(1000), now)
    assert books.remaining(now + 0.2)[0] == pytest.approx(500, rel=0.15), "it is half way"


def test_what_is_read_in_one_step_took_one_step() -> None:
    """Ten prompts come while a step is under way, and the next one reads them all: fixed costs count once for them."""
    books = book()
    step_s, token_s = 0.0062, 31e-6
    now = 0.0
    for turn in range(2000):
        prompts = [request(20) for n in range(10 if turn % 2 else 1)]
        for one in prompts:
            books.take(one, now)
        now += step_s + len(prompts) * 20 * token_s
        for one in prompts:
            books.read(one, now)
            books.drop(one, now)
    assert 1 / books.tokens_per_s == pytest.approx(token_s, rel=0.1)
    assert books.remaining(now) == (0, 0)


def test_a_reply_at_once_says_nothing_of_the_speed() -> None:
    books = book()
    before = books.tokens_per_s
    one = request(1000, stream=False)
    books.take(one, 0.0)
    assert books.remaining(60.0)[0] > 1000, "it may not be read yet, for all that is known"
    assert not books.unread, "but it should have been long ago"
    books.read(one, 60.0)
    books.drop(one, 60.0)
    assert books.tokens_per_s == before
    assert books.replying_s / books.in_flight_s == pytest.approx(1, rel=0.01), "next to all of its time it was read"


@pytest.mark.parametrize(("waiting", "slower"), [(50, True), (0, False)])
def test_without_streams_the_engine_says_whether_it_is_slower(waiting: int, slower: bool) -> None:
    books = book()
    before = books.tokens_per_s
    for second in range(20):
        books.take(request(20_000, stream=False), second)
        books.heard(EngineMetrics(second + 0.1, waiting=waiting))
    assert (books.tokens_per_s < before) is slower


def test_what_left_early_is_not_read() -> None:
    books = book()
    first, second = request(5000), request(700)
    books.take(first, 0.0)
    books.take(second, 0.0)
    books.drop(first, 0.1)
    assert books.remaining(0.1)[0] == pytest.approx(700, rel=0.02)
    books.drop(second, 0.2)
    assert books.remaining(0.2) == (0, 0)


def test_an_engine_that_hits_less_than_expected_holds_less() -> None:
    books, draw, queries, hits = book(cache_tokens=12_800), Random(1), 0, 0

    def held() -> int:
        return sum(books.cached(Prompt(200, (n,), 128)) > 0 for n in range(100))

    for second in range(400):
        for _ in range(50):
            one = request(200, draw.randrange(100))
            books.take(one, second)
            books.read(one, second + 0.01)
            queries, hits = queries + 200, hits + 20
        books.heard(EngineMetrics(float(second), prefix_queries=queries, prefix_hits=hits, cache_tokens=12_800))
    assert 5 < held() < 30, "one in ten tokens is a hit: about 16 of 100 prompts are there, not all"


@given(
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=40),
    most=st.integers(0, 30),
)
def test_a_mirror_is_bounded_and_holds_leading_parts(prompts: list[list[int]], most: int) -> None:
    mirror = PrefixMirror()
    for now, path in enumerate(prompts):
        blocks = [hash(tuple(path[: end + 1])) for end in range(len(path))]
        mirror.use(blocks, now)
        assert mirror.leading(blocks) == len(blocks)
        mirror.trim(most, oldest=now - 10)
        assert len(mirror) <= most
        for other in prompts:
            keys = [hash(tuple(other[: end + 1])) for end in range(len(other))]
            there = [mirror.leading(keys[: end + 1]) == end + 1 for end in range(len(keys))]
            assert there == sorted(there, reverse=True)
            assert mirror.leading(keys) == sum(there)
