# SPDX-License-Identifier: Apache-2.0
"""However requests and failures come, retries stay within their share; single requests can always be tried again."""

from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.configuration.settings import Retry
from vllm_gateway.scheduling.budget import RetryBudget, SlidingCount

SETTINGS = Retry(budget=0.2, floor=3, window_s=60)


def test_a_single_request_can_be_tried_again() -> None:
    budget = RetryBudget(SETTINGS)
    budget.first_attempts.add(1000.0)
    assert [budget.spend(1000.0) for _ in range(4)] == [True, True, True, False]


def test_a_fifth_of_many_can() -> None:
    budget = RetryBudget(SETTINGS)
    for number in range(100):
        budget.first_attempts.add(1000.0 + number / 10)
    assert sum(budget.spend(1010.0) for _ in range(100)) == 20


def test_what_was_spent_comes_back_with_time() -> None:
    budget = RetryBudget(SETTINGS)
    assert sum(budget.spend(1000.0) for _ in range(9)) == 3
    assert not budget.spend(1059.0)
    assert sum(budget.spend(1066.0) for _ in range(9)) == 3


def test_without_a_budget_nothing_is_tried_again() -> None:
    assert not RetryBudget(Retry(budget=0, floor=0)).spend(0.0)


@given(
    st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=200),
    st.floats(0, 1e7),
)
def test_in_any_window_retries_stay_within_their_share(steps: list[tuple[float, bool]], start: float) -> None:
    budget = RetryBudget(SETTINGS)
    requests: list[float] = []
    retries: list[float] = []
    now = start
    for wait, fails in steps:
        now += wait
        if not fails:
            budget.first_attempts.add(now)
            requests.append(now)
        elif budget.spend(now):
            retries.append(now)
            window = [t for t in requests if now - 60 <= t <= now]
            assert sum(now - 60 < t <= now for t in retries) <= max(0.2 * len(window), 3)


@given(st.lists(st.floats(0, 200), max_size=100), st.floats(0, 1e7))
def test_a_sliding_count_lies_between_its_bounds(waits: list[float], start: float) -> None:
    count = SlidingCount(60.0)
    times: list[float] = []
    now = start
    for wait in waits:
        now += wait
        count.add(now)
        times.append(now)
        exact = sum(t > now - 60 for t in times)
        assert count.at_least(now) <= sum(t >= now - 60 for t in times)
        assert exact <= count.at_most(now) <= sum(t >= now - 66 for t in times)
