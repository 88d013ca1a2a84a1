# SPDX-License-Identifier: Apache-2.0
"""The shipped strategies keep their word, and any strategy is found by its name."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.scheduling import (
    Address,
    InstanceView,
    Prompt,
    RequestInfo,
    Scheduler,
    StrategyError,
    load_strategy,
    make_strategy,
)

REQUEST = RequestInfo("r", "m", "/v1/chat/completions", False, b"{}")
SHIPPED = ("least_connections", "round_robin")


def instances(*in_flight: int) -> list[InstanceView]:
    return [
        InstanceView(f"i{i}", f"name{i}", "m", Address("127.0.0.1", 8000 + i), 8, in_flight=n)
        for i, n in enumerate(in_flight)
    ]


def make(name: str, strategies_dir: Path | None = None) -> Scheduler:
    return load_strategy(name, strategies_dir)()


@pytest.mark.parametrize("name", SHIPPED)
@given(offers=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=30))
def test_only_what_was_given_is_chosen(name: str, offers: list[list[int]]) -> None:
    strategy = make(name)
    for offer in offers:
        given_now = instances(*offer)
        before = [one.in_flight for one in given_now]
        chosen = strategy.choose(REQUEST, tuple(given_now))
        assert any(chosen is one for one in given_now)
        assert [one.in_flight for one in given_now] == before, "a strategy only reads"


@given(count=st.integers(1, 8), requests=st.integers(0, 200))
def test_round_robin_is_fair_within_one(count: int, requests: int) -> None:
    strategy, those = make("round_robin"), instances(*[0] * count)
    took = Counter(strategy.choose(REQUEST, those).instance_id for _ in range(requests))
    shares = [took[one.instance_id] for one in those]
    assert sum(shares) == requests
    assert max(shares) - min(shares) <= 1


@given(offers=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=30))
def test_least_connections_always_takes_one_of_the_idlest(offers: list[list[int]]) -> None:
    strategy = make("least_connections")
    for offer in offers:
        assert strategy.choose(REQUEST, instances(*offer)).in_flight == min(offer)


def test_least_connections_takes_equals_in_turn() -> None:
    strategy, those = make("least_connections"), instances(5, 1, 1, 1)
    took = [strategy.choose(REQUEST, those).instance_id for _ in range(6)]
    assert Counter(took) == {"i1": 2, "i2": 2, "i3": 2}
    assert took[:3] == took[3:]


@pytest.mark.parametrize("name", SHIPPED)
def test_each_model_has_a_strategy_of_its_own(name: str) -> None:
    factory = load_strategy(name)
    assert getattr(factory, "name", None) == name
    assert factory() is not factory()


def test_a_file_is_a_strategy(tmp_path: Path) -> None:
    text = "class First:\n    def choose(self, request, instances):\n        return instances[0]\n"
    (tmp_path / "first.py").write_text(text)
    those = instances(3, 2)
    assert make("first", tmp_path).choose(REQUEST, those) is those[0]


def test_a_file_with_several_classes_says_which_by_its_name(tmp_path: Path) -> None:
    text = "class Base:\n    def choose(self, request, instances):\n        return instances[0]\n"
    text += "class Last(Base):\n    name = 'last'\n"
    (tmp_path / "last.py").write_text(text)
    assert type(make("last", tmp_path)).__name__ == "Last"


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(StrategyError, match=r"no strategy 'rr'; there are: .*least_connections.*mine.*round_robin"):
        load_strategy("rr", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "class",
        "import no_such_module_at_all",
        "x = 1",
        "class A:\n    def choose(self): ...\nclass B:\n    def choose(self): ...",
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(StrategyError, match=r"broken\.py"):
        load_strategy("broken", tmp_path)


def test_the_longer_the_queues_the_more_a_cached_prefix_is_worth() -> None:
    """With nobody waiting, another instance reads the prompt sooner than its home, which is reading a long one."""

    def home_keeps_it(waiting: int) -> bool:
        now = [0.0]
        strategy = make_strategy("prefix_aware", clock=lambda: now[0])
        home, other = instances(0, 0)

        def ask(number: int, tokens: int, blocks: tuple[int, ...], offered: list[InstanceView]) -> InstanceView:
            request = RequestInfo.simulated(f"r{number}", "m", Prompt(tokens, blocks, 100))
            chosen = strategy.choose(request, offered)
            if number == 0:
                strategy.first_byte(request, chosen)  # type: ignore[attr-defined]
            chosen.in_flight += 1
            return chosen

        ask(0, 2000, tuple(range(20)), [home])
        ask(1, 4000, (), [home])
        for number in range(waiting):
            ask(2 + number, 1000, (), [home])
            ask(99 + number, 1000, (), [other])
        return ask(999, 2000, tuple(range(20)), [home, other]) is home

    assert not home_keeps_it(waiting=0)
    assert home_keeps_it(waiting=3)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "peak_ewma", "decay": 1}, r"'peak_ewma' has no option 'decay'; it has: decay_s"),
        ({"name": "round_robin", "x": 1}, r"'round_robin' has no option 'x'; it has: none"),
        ({"name": "peak_ewma", "decay_s": "long"}, r"decay_s: must be a number$"),
        ({"name": "peak_ewma", "decay_s": 0}, r"decay_s: must be a number, more than 0$"),
        ({"name": "random", "random": 1}, r"has no option 'random'"),
        ({"name": "chain"}, r"'chain' .*scorers"),
        ({"name": "chain", "scorers": []}, r"scorers: must be a list with at least 1 entry$"),
        ({"name": "chain", "scorers": [{"strategy": "round_robin"}]}, r"'round_robin' has no scores"),
        ({"name": "chain", "scorers": [{"strategy": "nobody"}]}, r"no strategy 'nobody'"),
        ({"name": "chain", "scorers": [{"strategy": "least_tokens", "wait": 1}]}, r"scorers\.0\.wait: is unknown here"),
        ({"options": 1}, r"needs its `name`"),
    ],
)
def test_options_are_checked(spec: dict[str, object], says: str) -> None:
    with pytest.raises(StrategyError, match=says):
        make_strategy(spec)


def test_a_class_without_arguments_is_enough(tmp_path: Path) -> None:
    (tmp_path / "last.py").write_text(
        "class Last:\n    def choose(self, request, instances):\n        return instances[-1]\n"
    )
    assert make_strategy("last", tmp_path, clock=lambda: 0.0, random=Random(1))
