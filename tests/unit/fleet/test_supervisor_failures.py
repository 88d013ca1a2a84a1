# SPDX-License-Identifier: Apache-2.0
"""The supervisor when engines fail: corrections, back-off, suspects, and what the waiting are told."""

import pytest

from tests.unit.fleet.simulation import FleetInTheHead, spec, started, stopped
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.endings import root_cause
from vllm_gateway.fleet.instance import State
from vllm_gateway.fleet.models import LONGEST_BACKOFF_S, backoff_s
from vllm_gateway.fleet.reconciler import Reconciler

NO_CACHE = ("ValueError: No available memory for the cache blocks.", "RuntimeError: failed. See root cause above.")


def test_a_footprint_too_small_is_corrected_while_the_request_waits() -> None:
    fleet = FleetInTheHead(spec("a"), gpu_mib=200)
    fleet.want("a")
    for mib in (60, 75, 94):
        (one,) = fleet.of("a")
        assert one.reserved_mib == mib
        fleet.hear(e.Died(one.instance_id, "exit status 1", NO_CACHE, 1))
        fleet.hear(e.Gone(one.instance_id))
    assert not fleet.refusals
    fleet.ready(fleet.of("a")[0])
    assert fleet.of("a", State.READY)[0].reserved_mib == 118


def test_corrections_come_to_an_end() -> None:
    fleet = FleetInTheHead(spec("a"))
    fleet.want("a")
    for _ in range(10):
        for one in fleet.of("a"):
            assert one.reserved_mib <= 100, "never more than there is"
            fleet.hear(e.Died(one.instance_id, "exit status 1", NO_CACHE, 1))
            fleet.hear(e.Gone(one.instance_id))
    assert fleet.refusals
    assert fleet.supervisor.models["a"].log_tail == NO_CACHE


def test_a_declared_footprint_is_not_corrected_but_the_right_one_is_told() -> None:
    fleet = FleetInTheHead(spec("a", footprint_mib=60))
    fleet.want("a")
    (one,) = fleet.of("a")
    fleet.hear(e.Died(one.instance_id, "exit status 1", NO_CACHE, 1))
    fleet.hear(e.Gone(one.instance_id))
    assert fleet.refusals
    assert "declare 75" in str(fleet.supervisor.models["a"].last_error)
    assert started(fleet.reconfigure(spec("a", footprint_mib=75))), "its back-off is over"


def test_an_operator_may_have_it_tried_again_now() -> None:
    fleet = FleetInTheHead(spec("a"))
    for _ in range(3):
        fleet.want("a")
        for one in fleet.of("a"):
            fleet.hear(e.Died(one.instance_id, "exit status 2", ("error: bad",), 2))
            fleet.hear(e.Gone(one.instance_id))
        fleet.now += 5
    assert not fleet.of("a")
    fleet.supervisor.models["a"].retry_at = fleet.now + 300
    assert len(started(fleet.hear(e.Retry("a")))) == 1
    assert fleet.supervisor.models["a"].failures == 0


def test_a_failed_start_refuses_the_waiting_in_short_and_frees_its_room() -> None:
    fleet = FleetInTheHead(spec("a"))
    fleet.want("a")
    (one,) = fleet.of("a")
    fleet.hear(e.Died(one.instance_id, "exit status 2", ("error: unrecognized arguments: --foo",), 2))
    ((_, refusal),) = fleet.refusals
    assert refusal.code == "model_start_failed"
    state = fleet.supervisor.models["a"]
    assert refusal.message.startswith(f"a could not be started: exit status 2 (failure {state.failure_id}:")
    assert state.last_error == "exit status 2: error: unrecognized arguments: --foo"
    assert refusal.retry_after_s == 1.0
    assert all(other.leaving for other in fleet.registry)
    fleet.hear(e.Gone(one.instance_id))
    assert not started(fleet.want("a")), "it backs off"
    assert len(fleet.refusals) == 2, "and says so at once"
    fleet.now += 1.0
    assert started(fleet.want("a"))


def test_back_off_doubles_up_to_a_limit() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert backoff_s(50) == LONGEST_BACKOFF_S


def test_an_instance_that_dies_is_replaced_at_once() -> None:
    fleet = FleetInTheHead(spec("a"))
    a = fleet.run("a")
    effects = fleet.hear(e.Died(a.instance_id, "killed", (), 137))
    assert e.Remove(a.instance_id) in effects
    assert started(fleet.hear(e.Gone(a.instance_id)))


def test_a_second_death_backs_off() -> None:
    fleet = FleetInTheHead(spec("a"))
    for _ in range(2):
        (one,) = fleet.of("a") or [fleet.run("a")]
        fleet.ready(one)
        fleet.hear(e.Died(one.instance_id, "killed", (), 137))
        effects = fleet.hear(e.Gone(one.instance_id))
    assert not started(effects)
    fleet.want("a")
    assert not fleet.refusals, "it worked, and will be back before long"
    assert started(fleet.tick(2))


def pauses_of(fleet: FleetInTheHead, start_s: float, lives_s: float) -> list[float]:
    """An engine that dies `lives_s` after it was ready, each time: how long its model waits then."""
    pauses = []
    for _ in range(6):
        fleet.want("a")
        (one,) = fleet.of("a")
        fleet.now += start_s
        fleet.ready(one)
        fleet.now += lives_s
        fleet.hear(e.Died(one.instance_id, "killed", (), 137))
        pauses.append(fleet.supervisor.models["a"].retry_at - fleet.now)
        fleet.now += pauses[-1]
        fleet.hear(e.Gone(one.instance_id))
    return pauses


def test_an_engine_that_lives_shorter_than_its_start_takes_is_in_a_crash_loop() -> None:
    assert pauses_of(FleetInTheHead(spec("a")), start_s=90, lives_s=15) == [0, 2, 4, 8, 16, 32]
    assert pauses_of(FleetInTheHead(spec("a")), start_s=1, lives_s=5) == [0, 2, 4, 8, 16, 32]


def test_an_engine_that_lives_longer_than_its_start_takes_is_not() -> None:
    assert pauses_of(FleetInTheHead(spec("a")), start_s=1, lives_s=30) == [0] * 6
    assert pauses_of(FleetInTheHead(spec("a")), start_s=90, lives_s=100) == [0] * 6


def test_what_keeps_dying_is_no_longer_waited_for() -> None:
    fleet = FleetInTheHead(spec("a"))
    one = fleet.run("a")
    fleet.supervisor.models["a"].failures = 5
    fleet.hear(e.Died(one.instance_id, "killed", (), 137))
    fleet.hear(e.Gone(one.instance_id))
    fleet.want("a")
    ((_, refusal),) = fleet.refusals
    assert "keeps failing" in refusal.message
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s >= 32


def test_a_suspect_is_marked_in_the_table_until_it_is_cleared() -> None:
    fleet = FleetInTheHead(spec("a"))
    a = fleet.run("a")
    assert fleet.hear(e.Suspected(a.instance_id, "reset")) == [e.CheckHealth(a.instance_id)]
    assert [route.suspect for route in fleet.registry.table().of("a")] == [True]
    assert not fleet.hear(e.Suspected(a.instance_id, "reset")), "one check at a time"
    fleet.hear(e.Cleared(a.instance_id))
    assert [route.suspect for route in fleet.registry.table().of("a")] == [False]


def test_while_the_runtime_is_away_nothing_makes_way() -> None:
    fleet = FleetInTheHead(spec("a", idle_timeout_s=60.0), spec("b"))
    fleet.run("a")
    fleet.runtime_away = True
    fleet.want("b")
    fleet.reconfigure(spec("a", idle_timeout_s=60.0, spec_hash="other"), spec("b"))
    fleet.tick(100)
    assert fleet.of("a", State.READY)
    fleet.runtime_away = False
    assert stopped(fleet.tick(1)), "b waits for the room"


def test_a_start_has_a_limit() -> None:
    fleet = FleetInTheHead(spec("a"))
    fleet.want("a")
    (one,) = fleet.of("a")
    assert not fleet.tick(599)
    assert e.Remove(one.instance_id) in fleet.tick(2)
    assert "start_timeout_s" in fleet.refusals[0][1].message


def test_the_root_cause_is_the_last_error_that_points_to_no_other() -> None:
    tail = ["INFO loading", "ValueError: No available memory.", "RuntimeError: failed. See root cause above."]
    assert root_cause(tail, 1) == "ValueError: No available memory."
    assert root_cause(["just words", ""], 1) == "just words"
    assert root_cause([], 1) == ""


def test_a_suspect_that_is_cleared_counts_as_used() -> None:
    fleet = FleetInTheHead(spec("a", idle_timeout_s=60.0))
    a = fleet.run("a")
    fleet.tick(59)
    fleet.hear(e.Suspected(a.instance_id, "reset"))
    fleet.activity.used.clear()  # what is not routed has no entry
    fleet.hear(e.Cleared(a.instance_id))
    assert not stopped(fleet.tick(59))
    assert stopped(fleet.tick(1)) == [a.instance_id]


def test_what_was_decided_before_an_error_is_done_with_the_next_event(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"))
    one = fleet.run("a")
    launch = Reconciler._launch

    def fails_once(reconciler: Reconciler, now: float) -> None:
        monkeypatch.setattr(Reconciler, "_launch", launch)
        raise ZeroDivisionError

    monkeypatch.setattr(Reconciler, "_launch", fails_once)
    with pytest.raises(ZeroDivisionError):
        fleet.want("b")
    assert one.state is State.STOPPING
    assert stopped(fleet.tick(1)) == [one.instance_id]
