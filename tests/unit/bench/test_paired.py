# SPDX-License-Identifier: Apache-2.0
"""The statistic by which a change is called dearer or not."""

import random

import pytest

from bench.paired import Interval, Verdict, judge, least_pairs, median_interval


@pytest.mark.parametrize(
    ("count", "rank", "confidence"),
    [(6, 1, 0.96875), (15, 4, 0.9648), (20, 6, 0.9586), (25, 8, 0.9567), (30, 10, 0.9572), (50, 18, 0.9672)],
)
def test_the_ranks_are_those_of_the_tables(count: int, rank: int, confidence: float) -> None:
    """As in tables of the sign test's interval, for example Conover, Practical Nonparametric Statistics."""
    found = median_interval([float(number) for number in range(1, count + 1)])
    assert (found.low, found.high) == (rank, count + 1 - rank)
    assert found.median == (count + 1) / 2
    assert found.confidence == pytest.approx(confidence, abs=5e-5)


def test_the_order_of_the_pairs_says_nothing() -> None:
    ratios = [1.0 + number / 100 for number in range(15)]
    shuffled = ratios.copy()
    random.Random(1).shuffle(shuffled)
    assert median_interval(shuffled) == median_interval(ratios)


def test_wild_pairs_do_not_move_it() -> None:
    calm = [0.99, 0.995, 1.0, 1.005, 1.01] * 3
    wild = [*calm[:-3], 9.0, 0.1, 7.0]
    assert median_interval(wild).high < 1.02
    assert median_interval(wild).low > 0.98


def test_it_holds_the_true_median_as_often_as_it_says() -> None:
    """With a skewed distribution: noise that only ever adds."""
    source = random.Random(7)
    true_median = 1.0 + 0.6931471805599453
    intervals = [median_interval([1.0 + source.expovariate(1.0) for _ in range(15)]) for _ in range(4000)]
    held = sum(one.low <= true_median <= one.high for one in intervals) / len(intervals)
    assert held == pytest.approx(intervals[0].confidence, abs=0.012)


def test_too_few_pairs_have_no_interval() -> None:
    assert least_pairs() == 6
    with pytest.raises(ValueError, match="5 pairs are too few"):
        median_interval([1.0] * 5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.029, Verdict.HOLDS),
        (0.99, 1.03, Verdict.UNDECIDED),  # wholly below, not up to
        (1.01, 1.06, Verdict.UNDECIDED),
        (1.03, 1.06, Verdict.DEARER),
        (1.04, 1.06, Verdict.DEARER),
    ],
)
def test_the_whole_interval_is_judged(low: float, high: float, verdict: Verdict) -> None:
    assert judge(Interval(low, (low + high) / 2, high, 0.95), 1.03) is verdict
