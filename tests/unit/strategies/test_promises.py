# SPDX-License-Identifier: Apache-2.0
"""What every shipped strategy promises, for any fleet and any stream of requests."""

import pkgutil

import pytest
from hypothesis import given, settings

from tests.unit.strategies.play import SPECS, STEPS, Play, Step, request
from vllm_gateway import strategies
from vllm_gateway.scheduling import InstanceView, RequestInfo, load_strategy

ALL = pytest.mark.parametrize("name", SPECS)


def test_no_shipped_strategy_is_left_out() -> None:
    assert {module.name for module in pkgutil.iter_modules(strategies.__path__)} == SPECS.keys()


@ALL
def test_its_first_line_says_when_it_is_right(name: str) -> None:
    assert ". Right " in str(__import__(f"vllm_gateway.strategies.{name}", fromlist=["x"]).__doc__).split("\n")[0]
    assert getattr(load_strategy(name), "name", None) == name


@ALL
@given(steps=STEPS)
@settings(deadline=None)
def test_it_chooses_what_it_was_given_and_only_reads(name: str, steps: list[Step]) -> None:
    Play(SPECS[name]).play([("join", 0), ("join", 1), *steps])  # `send` asserts it


@ALL
@given(steps=STEPS)
@settings(deadline=None, max_examples=30)
def test_it_is_deterministic_for_a_seed(name: str, steps: list[Step]) -> None:
    story = [("join", 0), ("join", 1), ("join", 2), *steps]
    assert Play(SPECS[name], seed=7).play(story).chosen == Play(SPECS[name], seed=7).play(story).chosen


@ALL
@given(steps=STEPS)
@settings(deadline=None, max_examples=30)
def test_it_forgets_who_is_gone(name: str, steps: list[Step]) -> None:
    play = Play(SPECS[name]).play([("join", 0), ("join", 1), *steps])
    play.close()
    remembered = play.remembered()
    assert not [one for one in remembered if isinstance(one, RequestInfo | InstanceView)]
    assert not {one for one in remembered if isinstance(one, str)} & {f"i{n}" for n in range(1, play.joined + 1)}


@ALL
def test_its_memory_is_bounded(name: str) -> None:
    def held(rounds: int) -> int:
        play = Play(SPECS[name])
        for number in range(3):
            play.join(number)
        for number in range(rounds):
            play.send(request(number, conversation=number, blocks=12))
            play.begin()
            play.end()
            play.now += 0.1
        return len(play.remembered())

    assert held(400) <= held(100) + 20
