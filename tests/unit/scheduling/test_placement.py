# SPDX-License-Identifier: Apache-2.0
"""Between queue and strategy: newcomers are spared, failures are caught, decisions are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.scheduling import Address, Decision, Decisions, InstanceView, Outcome, Placement, RequestInfo, Scoring
from vllm_gateway.scheduling.slow_start import spare_newcomers

REQUEST = RequestInfo("r1", "m", "/v1/completions", False, b"{}")


def view(name: str, in_flight: int = 0, ready_since: float = 0.0, weight: float = 1.0) -> InstanceView:
    return InstanceView(name, name, "m", Address("127.0.0.1", 1), 100, weight, ready_since, in_flight)


class Idlest(Scoring):
    def scores(self, request: RequestInfo, instances: Sequence[InstanceView]) -> Sequence[float]:
        return [float(one.in_flight) for one in instances]

    def reason(self) -> str:
        return "idle"


class Broken:
    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        raise RuntimeError("no")

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        raise RuntimeError("no")


@dataclass
class Bench:
    strategy: Idlest | Broken
    slow_start_s: float = 0.0
    keep: int = 3
    now: float = 100.0
    errors: list[Exception] = field(default_factory=list)
    logged: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.placement = Placement(
            self.strategy,
            failed=self.errors.append,
            clock=lambda: self.now,
            slow_start_s=self.slow_start_s,
            decisions=Decisions(self.keep, 2, self.logged.append),
        )


def test_a_newcomer_takes_its_share_little_by_little() -> None:
    def share(now: float) -> int:
        bench = Bench(Idlest(), slow_start_s=10, now=now)
        old, new = view("old", in_flight=20), view("new", ready_since=100.0)
        bench.placement.listed([old, new])
        for _ in range(40):
            bench.placement.choose(REQUEST, [old, new]).in_flight += 1
        return new.in_flight

    shares = [share(now) for now in (100.0, 102.0, 105.0, 109.0, 110.0)]
    assert shares[0] == 1
    assert shares == sorted(shares)
    assert shares[-1] == 30, "then it is one of all"


def test_a_fleet_that_is_new_as_a_whole_takes_all() -> None:
    those = [view("a", in_flight=9, ready_since=95.0), view("b", in_flight=9, ready_since=99.0)]
    assert spare_newcomers(those, 100.0, 10.0) == those


@given(
    those=st.lists(
        st.builds(view, st.just("i"), st.integers(0, 50), st.floats(0, 120), st.floats(0.1, 10)), min_size=1, max_size=8
    )
)
def test_somebody_is_always_left(those: list[InstanceView]) -> None:
    left = spare_newcomers(those, 100.0, 10.0)
    assert left
    assert all(any(one is other for other in those) for one in left)
    assert all(one in left for one in those if one.ready_since <= 90.0 or one.in_flight == 0)


def test_the_latest_decisions_are_kept_and_some_are_logged() -> None:
    bench = Bench(Idlest())
    those = [view("a", in_flight=2), view("b", in_flight=1)]
    for number in range(5):
        bench.placement.choose(RequestInfo(f"r{number}", "m", "/", False, b""), those)
    assert bench.placement.decisions is not None
    latest = bench.placement.decisions.latest()
    assert [one.request_id for one in latest] == ["r4", "r3", "r2"]
    assert latest[0].instance == "b"
    assert latest[0].scores == {"a": 2.0, "b": 1.0}
    assert latest[0].in_flight == {"a": 2, "b": 1}
    assert latest[0].reason == "idle"
    assert [one.request_id for one in bench.logged] == ["r1", "r3"]


def test_a_strategy_that_raises_is_stood_in_for() -> None:
    bench = Bench(Broken())
    those = [view("a"), view("b")]
    assert {bench.placement.choose(REQUEST, those).name for _ in range(4)} == {"a", "b"}
    bench.placement.finished(REQUEST, those[0], Outcome.OK)
    assert len(bench.errors) == 5
