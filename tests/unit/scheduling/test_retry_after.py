# SPDX-License-Identifier: Apache-2.0
"""A client that is sent away hears when to come again: by the start under way and by the queue before it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.fleet.start_times import UNKNOWN_S, StartTimes
from vllm_gateway.scheduling.retry_after import LONGEST_S, SHORTEST_S, UNKNOWN_WAIT_S, Turnover, retry_after_s


@pytest.mark.parametrize(
    ("start_s", "waiting", "served_per_s", "expected"),
    [
        (0, 0, 10, SHORTEST_S),
        (0, 1000, 10, 100),
        (0, 7, 2, 4),
        (42.2, 0, 0, 43),
        (42.2, 1000, 0, 43),
        (30, 100, 10, 40),
        (0, 1000, 0, UNKNOWN_WAIT_S),
        (0, 0, 0, SHORTEST_S),
        (0, 1000, 0.1, LONGEST_S),
    ],
)
def test_by_start_and_queue(start_s: float, waiting: int, served_per_s: float, expected: int) -> None:
    assert retry_after_s(start_s=start_s, waiting=waiting, served_per_s=served_per_s) == expected


@given(st.floats(0, 1e6), st.integers(0, 10**6), st.floats(0, 1e6))
def test_always_whole_seconds_within_bounds(start_s: float, waiting: int, served_per_s: float) -> None:
    seconds = retry_after_s(start_s=start_s, waiting=waiting, served_per_s=served_per_s)
    assert isinstance(seconds, int)
    assert SHORTEST_S <= seconds <= LONGEST_S


def test_places_come_back_as_fast_as_requests_give_them_back() -> None:
    turnover = Turnover()
    turnover.places = 8
    assert turnover.per_s(0.0) == 0.0
    turnover.kept(2.0)
    assert turnover.per_s(1.0) == 4.0
    assert turnover.per_s(16.0) == 0.5, "what it once was says little while nothing moves"
    for _ in range(200):
        turnover.kept(4.0)
    assert turnover.per_s(0.0) == pytest.approx(2.0, rel=0.01)


def test_a_start_takes_as_long_as_the_last_ones() -> None:
    starts = StartTimes()
    assert starts.remaining_s(0.0) == UNKNOWN_S
    for seconds in (600, 40, 44, 42):
        starts.add(seconds)
    assert starts.remaining_s(0.0) == 43
    assert starts.remaining_s(40.0) == 3
    assert starts.remaining_s(100.0) == 1
    for _ in range(5):
        starts.add(10)
    assert starts.typical_s == 10
