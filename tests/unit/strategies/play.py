# SPDX-License-Identifier: Apache-2.0
"""Plays a stream of requests to a strategy, as the queue would, on a simulated clock; looks at what it remembers."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from hypothesis import strategies as st

from vllm_gateway.scheduling import Address, InstanceView, Outcome, Prompt, RequestInfo, StrategySpec, make_strategy

PREFIX_AWARE: StrategySpec = {"name": "prefix_aware", "max_blocks": 20}
SPECS: dict[str, StrategySpec] = {
    "round_robin": "round_robin",
    "least_connections": "least_connections",
    "random": "random",
    "weighted_round_robin": "weighted_round_robin",
    "power_of_two": "power_of_two",
    "peak_ewma": "peak_ewma",
    "least_tokens": "least_tokens",
    "session_affinity": "session_affinity",
    "engine_metrics": "engine_metrics",
    "prefix_aware": PREFIX_AWARE,
    "chain": {
        "name": "chain",
        "filters": [{"strategy": "engine_metrics", "at_most": 5}],
        "scorers": [{"strategy": PREFIX_AWARE, "weight": 2}, {"strategy": "least_tokens"}],
    },
}
PLACES = 8
Step = tuple[str, int]
WORDS = ("join", "leave", "ask", "ask", "begin", "end", "tick")
STEPS = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 99)))


def request(number: int, *, conversation: int = 0, blocks: int = 4) -> RequestInfo:
    keys = tuple(hash((conversation, place)) for place in range(blocks))
    made = RequestInfo.simulated(f"r{number}", "m", Prompt(max(1, blocks * 128), keys, 128))
    made.raw_headers = ((b"X-Session-Id", b"s%d" % conversation),)
    return made


@dataclass
class Play:
    """`chosen` is the story so far: equal steps and an equal seed must give an equal story."""

    spec: StrategySpec
    seed: int = 0
    now: float = 1000.0
    views: list[InstanceView] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    placed: list[tuple[RequestInfo, InstanceView]] = field(default_factory=list)
    joined: int = 0

    def __post_init__(self) -> None:
        self.strategy = make_strategy(self.spec, clock=lambda: self.now, random=Random(self.seed))

    def play(self, steps: Sequence[Step]) -> "Play":
        for word, number in steps:
            getattr(self, word)(number)
        return self

    def join(self, number: int = 0) -> None:
        self.joined += 1
        weight = 1.0 + number % 3
        view = InstanceView(f"i{self.joined}", f"n{number}", "m", Address("127.0.0.1", 1), PLACES, weight, self.now)
        self.views.append(view)

    def leave(self, number: int = 0) -> None:
        """Its requests end first, as the gateway sees to."""
        if self.views:
            view = self.views.pop(number % len(self.views))
            for request, place in [one for one in self.placed if one[1] is view]:
                self._end(request, place)
            self._tell("departed", view.instance_id)

    def ask(self, number: int = 0) -> None:
        self.send(request(len(self.chosen), conversation=number % 5, blocks=number % 7))

    def send(self, one: RequestInfo) -> InstanceView | None:
        open_to_all = tuple(view for view in self.views if view.in_flight < view.max_in_flight)
        if not open_to_all:
            return None
        before = [repr(view) for view in open_to_all]
        chosen = self.strategy.choose(one, open_to_all)
        assert any(chosen is view for view in open_to_all), "a stranger"
        assert [repr(view) for view in open_to_all] == before, "a strategy only reads"
        chosen.in_flight += 1
        self.placed.append((one, chosen))
        self.chosen.append(chosen.instance_id)
        return chosen

    def begin(self, number: int = 0) -> None:
        if self.placed:
            self._tell("first_byte", *self.placed[number % len(self.placed)])

    def end(self, number: int = 0) -> None:
        if self.placed:
            self._end(*self.placed[number % len(self.placed)])

    def tick(self, number: int = 0) -> None:
        self.now += number / 10

    def close(self) -> None:
        while self.views:
            self.leave()

    def _end(self, request: RequestInfo, view: InstanceView) -> None:
        self.placed.remove((request, view))
        view.in_flight -= 1
        self._tell("finished", request, view, Outcome.OK)

    def _tell(self, hook: str, *facts: object) -> None:
        if tell := getattr(self.strategy, hook, None):
            tell(*facts)

    def remembered(self) -> list[Any]:
        """Everything that the strategy holds on to, but for code and for this play itself."""
        return list(_reachable(self.strategy, {id(self), id(self.__dict__)}))


def _reachable(root: object, seen: set[int]) -> Iterator[object]:
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType | BuiltinFunctionType | Random):
            continue
        seen.add(id(one))
        yield one
        waiting += gc.get_referents(one)
