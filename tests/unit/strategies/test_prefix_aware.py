# SPDX-License-Identifier: Apache-2.0
"""Prefix aware keeps all busy: no instance idles while others queue, and a popular prefix is read where it pays."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_gateway.routing import EngineMetrics
from vllm_gateway.scheduling import Address, InstanceView, Outcome, Prompt, RequestInfo, make_strategy
from vllm_gateway.scheduling.regrets import Regrets
from vllm_gateway.strategies.prefix_aware import PrefixAware

BLOCK = 128


@dataclass
class Fleet:
    """Instances under the strategy, on a clock that the test moves."""

    weights: Sequence[float]
    now: float = 100.0
    views: list[InstanceView] = field(init=False)
    strategy: PrefixAware = field(init=False)
    asked: int = 0

    def __post_init__(self) -> None:
        self.views = [
            InstanceView(f"i{n}", f"i{n}", "m", Address(), 256, weight) for n, weight in enumerate(self.weights)
        ]
        strategy = make_strategy("prefix_aware", clock=lambda: self.now)
        assert isinstance(strategy, PrefixAware)
        self.strategy = strategy

    def ask(
        self, prefix_tokens: int, tail_tokens: int = 60, *, only: InstanceView | None = None, stream: bool = True
    ) -> tuple[RequestInfo, InstanceView]:
        """All prefixes begin alike; each tail is its own."""
        self.asked += 1
        tokens = prefix_tokens + tail_tokens
        shared = range(prefix_tokens // BLOCK)
        own = (self.asked * 10_000 + block for block in range(len(shared), tokens // BLOCK))
        request = RequestInfo.simulated(f"r{self.asked}", "m", Prompt(tokens, (*shared, *own), BLOCK))
        request.stream = stream
        chosen = self.strategy.choose(request, [only] if only else self.views)
        chosen.in_flight += 1
        return request, chosen

    def begin(self, request: RequestInfo, instance: InstanceView) -> None:
        self.strategy.first_byte(request, instance)

    def end(self, request: RequestInfo, instance: InstanceView) -> None:
        instance.in_flight -= 1
        self.strategy.finished(request, instance, Outcome.OK)


@given(
    prefix_tokens=st.integers(0, 32_000),
    replying=st.integers(0, 64),
    unread=st.integers(2, 40),
    seconds=st.floats(0, 5),
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=8),
)
@settings(deadline=None, max_examples=60)
def test_an_instance_with_nothing_to_do_is_chosen_while_prompts_queue_elsewhere(
    prefix_tokens: int, replying: int, unread: int, seconds: float, weights: list[float]
) -> None:
    fleet = Fleet(weights)
    home = fleet.views[0]
    for _ in range(replying):
        fleet.begin(*fleet.ask(prefix_tokens, only=home))
    for _ in range(unread):
        fleet.ask(prefix_tokens, only=home)
    fleet.now += seconds
    assert fleet.ask(prefix_tokens)[1] is not home


@given(
    prefix_tokens=st.integers(0, 32_000),
    places=st.integers(1, 64),
    waiting=st.integers(1, 40),
    idle=st.integers(1, 7),
)
@settings(deadline=None, max_examples=60)
def test_an_instance_with_nothing_to_do_is_chosen_while_others_wait_for_a_place_in_the_engine(
    prefix_tokens: int, places: int, waiting: int, idle: int
) -> None:
    """Replies in one piece: when their prompts were read, only the engine says, and it says that they wait."""
    fleet = Fleet([1.0] * (1 + idle))
    home = fleet.views[0]
    for _ in range(places + waiting):
        fleet.ask(prefix_tokens, only=home, stream=False)
    fleet.now += 60.0  # all of them should have been read
    home.metrics = EngineMetrics(fleet.now - 1, running=places, waiting=waiting)
    assert fleet.ask(prefix_tokens, stream=False)[1] is not home


@given(
    tokens=st.integers(1, 32_000),
    more=st.integers(1, 40),
    fewer=st.integers(0, 40),
    seconds=st.floats(0, 600),
)
@settings(deadline=None, max_examples=60)
def test_without_streams_more_in_flight_is_more_to_do_however_long_it_takes(
    tokens: int, more: int, fewer: int, seconds: float
) -> None:
    """By time alone, all would be taken for read long before it is, or long after."""
    fleet = Fleet([1.0, 1.0])
    busy, other = fleet.views
    for _ in range(fewer + more):
        fleet.ask(0, tokens, only=busy, stream=False)
    for _ in range(fewer):
        fleet.ask(0, tokens, only=other, stream=False)
    fleet.now += seconds
    assert fleet.ask(0, tokens, stream=False)[1] is other


def test_a_shared_prefix_keeps_nobody_at_one_instance_while_it_is_not_known_how_long_replies_take() -> None:
    """In one piece and long: none has ended yet, and all that is cached is cached at the first."""
    fleet = Fleet([1.0] * 4)
    for _ in range(40):
        fleet.ask(32_000, stream=False)
        fleet.now += 0.3
    assert min(one.in_flight for one in fleet.views) >= 5


def test_a_popular_prefix_is_read_on_a_second_instance_once_its_lack_has_cost_as_much() -> None:
    """One comes after the other, so nobody queues; but replies are under way at home, and slow each other."""
    fleet = Fleet([1.0, 1.0])
    under_way: deque[tuple[RequestInfo, InstanceView]] = deque()
    placed = []
    for _ in range(400):
        request, chosen = fleet.ask(8000)
        fleet.now += 0.05
        fleet.begin(request, chosen)
        placed.append(chosen.instance_id)
        under_way.append((request, chosen))
        if len(under_way) > 20:
            fleet.end(*under_way.popleft())
    first_elsewhere = next(n for n, name in enumerate(placed) if name != placed[0])
    assert 1 < first_elsewhere < 60, "neither at once nor never"
    assert min(Counter(placed[100:]).values()) > 120


def test_a_conversation_stays_at_its_home_though_another_instance_has_less_to_do() -> None:
    fleet = Fleet([1.0, 1.0])
    home = fleet.views[0]
    for _ in range(20):
        fleet.begin(*fleet.ask(0, only=home))
    for turn in range(1, 12):
        request, chosen = fleet.ask(8192 * turn, only=home if turn == 1 else None)
        assert chosen is home
        fleet.now += 0.2
        fleet.begin(request, chosen)
        fleet.now += 5.0
        fleet.end(request, chosen)


def test_the_reason_says_why_what_is_cached_elsewhere_is_read_again() -> None:
    fleet = Fleet([1.0, 1.0])
    home = fleet.views[0]
    fleet.begin(*fleet.ask(8192, only=home))
    fleet.ask(8192)
    assert fleet.strategy.reason().startswith("about 8192 of 8252 prompt tokens are cached there, 0 are to be read")
    fleet.ask(8192)
    fleet.ask(8192)
    assert fleet.strategy.reason().endswith("8192 are cached elsewhere, where requests queue")


def test_regrets_are_bounded_and_settled() -> None:
    regrets = Regrets()
    regrets.add(1, 0.5)
    regrets.add(1, 0.25)
    assert regrets.of(1) == 0.75
    assert regrets.of(2) == regrets.of(None) == 0
    regrets.settle(1)
    assert regrets.of(1) == 0
    for beginning in range(5000):
        regrets.add(beginning, 1.0)
    assert len(regrets) == 1000
    assert regrets.of(4999) == 1
