# SPDX-License-Identifier: Apache-2.0
"""Instances that run and do not answer, or do not work: who gets no requests, who is replaced, and when nobody is."""

import pytest

from tests.unit.fleet.simulation import FleetInTheHead, spec
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.instance import Instance, State

LIMIT_S = 60


def fleet_of(count: int) -> tuple[FleetInTheHead, list[Instance]]:
    """All of them ready."""
    fleet = FleetInTheHead(spec("a", count), gpus=count)
    fleet.run("a")
    for one in fleet.of("a", State.STARTING):
        fleet.ready(one)
    assert len(fleet.of("a", State.READY)) == count
    return fleet, fleet.of("a")


def miss(fleet: FleetInTheHead, *ones: Instance, times: int = 2) -> None:
    for one in ones:
        for _ in range(times):
            fleet.hear(e.Missed(one.instance_id, "no answer"))


def hang(fleet: FleetInTheHead, *ones: Instance) -> None:
    for one in ones:
        fleet.hear(e.Hung(one.instance_id, "nothing moves"))


def routed(fleet: FleetInTheHead) -> list[Instance]:
    ids = [route.instance_id for route in fleet.registry.table().of("a") if not route.suspect]
    return [one for one in fleet.of("a") if one.instance_id in ids]


def removed(effects: list[e.Effect]) -> list[str]:
    return [effect.instance_id for effect in effects if isinstance(effect, e.Remove)]


def replace(fleet: FleetInTheHead, one: Instance) -> None:
    """It is gone, and its successor is ready."""
    fleet.hear(e.Gone(one.instance_id))
    (successor,) = fleet.of("a", State.STARTING)
    fleet.ready(successor)


def test_one_missed_look_does_not_count() -> None:
    fleet, (a, b) = fleet_of(2)
    miss(fleet, a, times=1)
    fleet.hear(e.Cleared(a.instance_id))
    miss(fleet, a, times=1)
    assert routed(fleet) == [a, b]
    miss(fleet, a, times=1)
    assert routed(fleet) == [b]
    assert fleet.registry.table().silent == {a.instance_id}


def test_one_that_answers_again_in_time_comes_back_and_is_not_replaced() -> None:
    fleet, (a, b) = fleet_of(2)
    miss(fleet, a)
    assert not removed(fleet.tick(LIMIT_S - 1))
    fleet.hear(e.Cleared(a.instance_id))
    assert routed(fleet) == [a, b]
    assert not removed(fleet.tick(LIMIT_S))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_that_does_not_answer_is_replaced_after_the_limit_alone_or_one_of_many(count: int) -> None:
    fleet, (a, *_) = fleet_of(count)
    miss(fleet, a)
    assert not removed(fleet.tick(LIMIT_S - 1))
    assert removed(fleet.tick(1)) == [a.instance_id]
    replace(fleet, a)
    assert len(routed(fleet)) == count
    assert not removed(fleet.tick(10 * LIMIT_S))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_that_hangs_is_replaced_at_once(count: int) -> None:
    fleet, (a, *others) = fleet_of(count)
    hang(fleet, a)
    assert routed(fleet) == others
    assert removed(fleet.tick(0)) == [a.instance_id]
    replace(fleet, a)
    assert len(routed(fleet)) == count


@pytest.mark.parametrize("is_hung", [True, False])
def test_the_table_tells_who_is_silent_who_hangs_and_who_is_ended_for_it(is_hung: bool) -> None:
    fleet, (a, _) = fleet_of(2)
    (hang if is_hung else miss)(fleet, a)
    nobody: frozenset[str] = frozenset()
    ids = frozenset({a.instance_id})
    table = fleet.registry.table()
    assert (table.silent, table.hung, table.ended) == (ids, ids if is_hung else nobody, nobody)
    fleet.tick(LIMIT_S)
    assert a.state is State.FAILED
    table = fleet.registry.table()
    assert (table.silent, table.hung, table.ended) == (ids, ids if is_hung else nobody, ids)


def test_a_health_check_that_passes_says_nothing_of_the_work() -> None:
    fleet, (a, b) = fleet_of(2)
    fleet.runtime_away = True
    hang(fleet, a)
    fleet.hear(e.Cleared(a.instance_id))
    assert routed(fleet) == [b]
    fleet.hear(e.Works(a.instance_id))
    assert routed(fleet) == [a, b]


def test_one_replacement_at_a_time() -> None:
    fleet, (a, b, *_) = fleet_of(4)
    miss(fleet, a, b)
    (first,) = removed(fleet.tick(LIMIT_S))
    assert first == a.instance_id
    assert not removed(fleet.tick(LIMIT_S))
    fleet.hear(e.Gone(first))
    assert not removed(fleet.tick(LIMIT_S)), "its successor starts"
    outlook = fleet.supervisor.outlook(b, fleet.now) or ""
    assert "another instance is being replaced" in outlook
    fleet.ready(fleet.of("a", State.STARTING)[0])
    assert removed(fleet.tick(0)) == [b.instance_id]


@pytest.mark.parametrize("sick", [miss, hang])
def test_none_is_replaced_while_more_than_half_looks_sick_unless_an_operator_wants_it(sick) -> None:  # type: ignore[no-untyped-def]
    fleet, (a, b, c) = fleet_of(3)
    sick(fleet, a, b)
    assert not removed(fleet.tick(LIMIT_S))
    assert "2 of 3" in (fleet.supervisor.models["a"].why_sick_stay or "")
    assert "2 of 3" in (fleet.supervisor.outlook(a, fleet.now) or "")
    assert routed(fleet) == [c]
    fleet.hear(e.Retry("a"))
    assert removed(fleet.tick(0)) == [a.instance_id]
    replace(fleet, a)
    assert removed(fleet.tick(0)) == [b.instance_id]


def test_what_all_fail_together_and_recover_one_by_one_is_told_apart() -> None:
    fleet, (a, b) = fleet_of(2)
    miss(fleet, a, b)
    assert not removed(fleet.tick(LIMIT_S))
    fleet.hear(e.Cleared(b.instance_id))
    assert removed(fleet.tick(0)) == [a.instance_id], "half is not more than half"


def test_whoever_is_heard_is_alive_whatever_its_health_check_says() -> None:
    fleet, (a, _) = fleet_of(2)
    miss(fleet, a)
    fleet.activity.heard[a.instance_id] = fleet.now + 30
    assert not removed(fleet.tick(LIMIT_S + 29))
    assert removed(fleet.tick(1)) == [a.instance_id]


def test_while_the_runtime_is_away_nobody_is_replaced_and_the_limit_begins_anew() -> None:
    fleet, (a, _) = fleet_of(2)
    miss(fleet, a)
    fleet.runtime_away = True
    assert not removed(fleet.tick(2 * LIMIT_S))
    fleet.runtime_away = False
    assert not removed(fleet.tick(LIMIT_S - 1))
    assert removed(fleet.tick(1)) == [a.instance_id]


@pytest.mark.parametrize("sick", [miss, hang])
def test_one_that_leaves_anyway_is_ended_whatever_the_others_do(sick) -> None:  # type: ignore[no-untyped-def]
    fleet, (a, b) = fleet_of(2)
    fleet.activity.busy = {a.instance_id: 1, b.instance_id: 1}
    fleet.reconfigure(spec("a", 1))
    (leaving,) = fleet.of("a", State.DRAINING)
    sick(fleet, a, b)
    assert leaving.instance_id in removed(fleet.tick(LIMIT_S))


def test_a_sleeper_that_does_not_answer_is_ended_and_not_woken() -> None:
    fleet = FleetInTheHead(spec("a", sleeps=True), spec("b"))
    a = fleet.run("a")
    b = fleet.run("b")
    assert a.state is State.SLEEPING
    miss(fleet, a)
    fleet.want("a")
    assert a.state is State.SLEEPING
    assert removed(fleet.tick(LIMIT_S)) == [a.instance_id]
    assert b.state is not State.FAILED


def test_one_adopted_that_does_not_answer_is_replaced_after_its_limit_and_its_requests_wait() -> None:
    fleet = FleetInTheHead(spec("a"))
    a = fleet.adopt("a", "gpu0", 60)
    fleet.want("a")
    miss(fleet, a)
    assert not removed(fleet.tick(LIMIT_S - 1))
    assert removed(fleet.tick(1)) == [a.instance_id]
    assert not fleet.refusals
    replace(fleet, a)


def test_one_adopted_that_answers_in_time_is_ready() -> None:
    fleet = FleetInTheHead(spec("a"))
    a = fleet.adopt("a", "gpu0", 60)
    miss(fleet, a)
    fleet.tick(LIMIT_S - 1)
    fleet.ready(a)
    assert routed(fleet) == [a]
    assert not removed(fleet.tick(LIMIT_S))


@pytest.mark.parametrize(("age_s", "left_s"), [(0, 600), (500, 100), (590, LIMIT_S), (100_000, LIMIT_S)])
def test_one_adopted_that_refuses_has_what_is_left_of_its_start(age_s: float, left_s: float) -> None:
    fleet = FleetInTheHead(spec("a"))
    a = fleet.adopt("a", "gpu0", 60, age_s=age_s)
    assert not removed(fleet.tick(left_s))
    assert removed(fleet.tick(1)) == [a.instance_id]


def test_a_gateway_that_has_handed_over_ends_nobody() -> None:
    fleet, (a, b) = fleet_of(2)
    fleet.hear(e.HandOver(active=True))
    miss(fleet, a)
    assert routed(fleet) == [b], "its own requests go elsewhere"
    assert not fleet.tick(10 * LIMIT_S)
    fleet.hear(e.HandOver(active=False))
    assert removed(fleet.tick(0)) == [a.instance_id]


def test_what_comes_next_is_said() -> None:
    fleet, (a, _) = fleet_of(2)
    assert fleet.supervisor.outlook(a, fleet.now) is None
    miss(fleet, a)
    fleet.now += 20
    assert fleet.supervisor.outlook(a, fleet.now) == "no answer, 20 s ago; it is replaced in 40 s unless it answers"
