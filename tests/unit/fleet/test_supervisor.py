# SPDX-License-Identifier: Apache-2.0
"""The supervisor's promises, each as a list of events."""

import pytest

from tests.unit.fleet.simulation import FleetInTheHead, spec, started, stopped
from vllm_gateway.allocator.types import Gpu
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import LONGEST_BACKOFF_S, backoff_s, root_cause
from vllm_gateway.fleet.reconciler import Reconciler
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.fleet.start_times import UNKNOWN_S


def test_a_cold_model_starts_all_its_instances_side_by_side_on_different_gpus() -> None:
    fleet = FleetInTheHead(spec("a", 2), gpus=2)
    assert len(started(fleet.want("a", 50))) == 2
    assert sorted(one.gpu_ids for one in fleet.of("a")) == [("gpu0",), ("gpu1",)]
    assert fleet.hear(e.Wanted("a")) == [], "more requests start nothing more"


def test_on_one_gpu_they_start_one_after_another() -> None:
    fleet = FleetInTheHead(spec("a", 2), footprints={"a": 40})
    first = started(fleet.want("a"))
    assert len(first) == 1
    one = fleet.registry.get(first[0])
    assert one is not None
    second = started(fleet.ready(one))
    assert len(second) == 1
    assert second != first


def test_names_take_the_lowest_free_number() -> None:
    fleet = FleetInTheHead(spec("a", 2), gpus=2)
    fleet.want("a")
    assert [one.name for one in fleet.of("a")] == ["vllm_server_a_instance_1", "vllm_server_a_instance_2"]
    fleet.hear(e.Died(fleet.of("a")[0].instance_id, "gone"))
    fleet.hear(e.Gone(fleet.of("a", State.FAILED)[0].instance_id))
    fleet.tick(2)
    assert {one.number for one in fleet.of("a")} == {1, 2}


def test_the_least_recently_used_makes_room_and_is_gone_before_the_next_starts() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c"), gpus=2)
    a = fleet.run("a")
    fleet.now += 10
    b = fleet.run("b")
    effects = fleet.want("c")
    assert stopped(effects) == [a.instance_id]
    assert not started(effects)
    assert b.state is State.READY
    assert started(fleet.hear(e.Gone(a.instance_id)))


def in_use(fleet: FleetInTheHead, one: Instance) -> None:
    """It always has a request in flight."""
    fleet.activity.busy[one.instance_id] = 1
    fleet.activity.used[one.instance_id] = fleet.now


def test_two_models_in_constant_use_are_swapped_once_a_quantum() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), min_resident_s=60)
    one, other = fleet.run("a"), "b"
    for _ in range(3):
        in_use(fleet, one)
        fleet.want(other)
        for _ in range(59):
            assert not stopped(fleet.tick(1))
            in_use(fleet, one)
        fleet.tick(1)
        assert fleet.of(one.model, State.DRAINING) == [one], "the quantum is over"
        fleet.activity.busy[one.instance_id] = 0
        fleet.hear(e.Drained(one.instance_id))
        one, other = fleet.run(other), one.model


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
    fleet = FleetInTheHead(spec("a", footprint_declared=True))
    fleet.want("a")
    (one,) = fleet.of("a")
    fleet.hear(e.Died(one.instance_id, "exit status 1", NO_CACHE, 1))
    assert fleet.refusals
    assert "declare 75" in str(fleet.supervisor.models["a"].last_error)


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


def test_a_reservation_on_a_gpu_that_fails_is_planned_anew() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), gpus=2)
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    fleet.hear(e.GpusRead([Gpu("gpu0", 0, "card", 100), Gpu("gpu1", 1, "card", 100, problem="fell off the bus")]))
    fleet.want("b")
    (one,) = fleet.of("b", State.STARTING)
    assert one.gpu_ids == ("gpu0",), "and waits for a"
    fleet.hear(e.GpusRead([Gpu("gpu0", 0, "card", 100, problem="fell off, too"), Gpu("gpu1", 1, "card", 100)]))
    assert [other.gpu_ids for other in fleet.of("b", State.STARTING)] == [("gpu1",)]


def test_memory_that_others_take_is_not_promised_twice() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"))
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    fleet.want("b")
    fleet.hear(e.GpusRead([Gpu("gpu0", 0, "card", 100, foreign_mib=50)]))
    assert not fleet.of("b")
    ((model, refusal),) = fleet.refusals
    assert (model, refusal.code) == ("b", "no_room")
    assert "50 MiB held by others" in refusal.message


def test_nobody_makes_way_before_it_has_served_those_who_waited_for_it() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), min_resident_s=0)
    a = fleet.run("a")
    fleet.want("b")
    fleet.hear(e.Gone(a.instance_id))
    fleet.want("a")
    (b,) = fleet.of("b")
    fleet.now += 1
    fleet.hear(e.Launched(b.instance_id, Running(b.name, "127.0.0.1", 8000)))
    assert not stopped(fleet.hear(e.BecameReady(b.instance_id)))
    assert [route.instance_id for route in fleet.registry.table().of("b")] == [b.instance_id]
    fleet.now += 1
    fleet.activity.used[b.instance_id], fleet.activity.waits["b"] = fleet.now, 0
    assert stopped(fleet.hear(e.Unwanted("b"))) == [b.instance_id]


def test_a_model_that_nobody_uses_makes_way_within_its_quantum() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), min_resident_s=60)
    a = fleet.run("a")
    fleet.now += 2
    assert stopped(fleet.want("b")) == [a.instance_id]


def test_who_has_waited_too_long_is_not_overtaken() -> None:
    """`wide` needs both GPUs; small ones that come and go would always hold one of them."""
    fleet = FleetInTheHead(spec("wide", gpu_count=2), spec("a"), spec("b"), spec("c"), gpus=2, min_resident_s=60)
    a, b = fleet.run("a"), fleet.run("b")
    in_use(fleet, a)
    fleet.want("wide")
    fleet.now += 50
    fleet.hear(e.Died(b.instance_id, "killed"))
    fleet.hear(e.Gone(b.instance_id))
    fleet.now += 70
    a.ready_at = fleet.now  # as if it had been swapped in just now
    fleet.want("c")
    assert not fleet.of("c"), "wide has waited for 120 s: the room is kept for it"
    fleet.tick(60)
    assert a.state is State.DRAINING
    assert fleet.of("wide", State.STARTING)


def test_a_discovery_run_does_not_wait_for_the_busy_for_ever() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), unknown=["b"], min_resident_s=60)
    a = fleet.run("a")
    in_use(fleet, a)
    fleet.want("b")
    fleet.tick(119)
    assert fleet.of("a", State.READY) == [a]
    fleet.tick(1)
    assert fleet.of("a", State.DRAINING) == [a]


def test_idle_goes_before_busy_even_if_used_later() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c"), gpus=2)
    a = fleet.run("a")
    fleet.now += 10
    b = fleet.run("b")
    fleet.activity.busy[a.instance_id] = 1
    assert stopped(fleet.want("c")) == [b.instance_id]


def test_a_busy_instance_is_drained_and_never_cut() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"))
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    assert not stopped(fleet.want("b"))
    assert a.state is State.DRAINING
    assert not stopped(fleet.tick(3600))
    fleet.activity.busy[a.instance_id] = 0
    assert stopped(fleet.hear(e.Drained(a.instance_id))) == [a.instance_id]


def test_what_can_never_fit_is_refused_at_once_and_evicts_nothing() -> None:
    fleet = FleetInTheHead(spec("a"), spec("huge"), footprints={"huge": 101})
    a = fleet.run("a")
    fleet.want("huge")
    ((model, refusal),) = fleet.refusals
    assert (model, refusal.code) == ("huge", "no_room")
    assert "101" in refusal.message
    assert a.state is State.READY


def test_a_pinned_model_is_never_evicted() -> None:
    fleet = FleetInTheHead(spec("a", pinned=True), spec("b"))
    a = fleet.run("a")
    fleet.want("b")
    assert a.state is State.READY
    assert [refusal.code for _, refusal in fleet.refusals] == ["no_room"]


def test_an_extra_instance_takes_free_room_only_and_says_why_it_is_missing() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b", 2), gpus=2)
    a, b = fleet.run("a"), fleet.run("b")
    fleet.tick(1)
    assert [one.instance_id for one in fleet.registry] == [a.instance_id, b.instance_id]
    assert "no room" in str(fleet.supervisor.models["b"].why_fewer)


def test_a_failed_start_refuses_the_waiting_with_the_engines_words_and_frees_its_room() -> None:
    fleet = FleetInTheHead(spec("a"))
    fleet.want("a")
    (one,) = fleet.of("a")
    fleet.hear(e.Died(one.instance_id, "exit status 2", ("error: unrecognized arguments: --foo",), 2))
    ((_, refusal),) = fleet.refusals
    assert refusal.code == "model_start_failed"
    assert "--foo" in refusal.message
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


def test_a_client_that_leaves_before_anything_was_stopped_changes_nothing() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"))
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    fleet.want("b")
    assert fleet.of("a", State.DRAINING) == [a]
    fleet.leave("b")
    assert fleet.of("a", State.READY) == [a]
    assert not fleet.of("b")
    assert not stopped(fleet.effects)


def test_an_unknown_footprint_starts_one_instance_which_is_measured_before_the_others() -> None:
    fleet = FleetInTheHead(spec("a", 2), gpus=2, unknown=["a"])
    (first,) = started(fleet.want("a"))
    one = fleet.registry.get(first)
    assert one is not None and one.discovery
    fleet.ready(one, measured_mib=42)
    assert one.reserved_mib == 42
    assert e.KeepFootprint("a", 42) in fleet.effects
    fleet.tick(1)
    assert [other.reserved_mib for other in fleet.of("a")] == [42, 42]


def test_a_discovery_run_waits_for_the_busy() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), unknown=["b"])
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    fleet.want("b")
    assert a.state is State.READY
    assert not fleet.refusals
    fleet.activity.busy[a.instance_id] = 0
    assert stopped(fleet.tick(1)) == [a.instance_id]


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


def test_an_idle_model_is_stopped_and_a_pinned_one_is_not() -> None:
    fleet = FleetInTheHead(spec("a", idle_timeout_s=60.0), spec("b", idle_timeout_s=60.0, pinned=True), gpus=2)
    a, b = fleet.run("a"), fleet.run("b")
    assert not stopped(fleet.tick(59))
    fleet.activity.used[a.instance_id] = fleet.now
    assert not stopped(fleet.tick(59))
    assert stopped(fleet.tick(1)) == [a.instance_id]
    fleet.hear(e.Gone(a.instance_id))
    assert not fleet.of("a"), "it stays away until somebody asks"
    assert b.state is State.READY


def test_a_suspect_is_marked_in_the_table_until_it_is_cleared() -> None:
    fleet = FleetInTheHead(spec("a"))
    a = fleet.run("a")
    assert fleet.hear(e.Suspected(a.instance_id, "reset")) == [e.CheckHealth(a.instance_id)]
    assert [route.suspect for route in fleet.registry.table().of("a")] == [True]
    assert not fleet.hear(e.Suspected(a.instance_id, "reset")), "one check at a time"
    fleet.hear(e.Cleared(a.instance_id))
    assert [route.suspect for route in fleet.registry.table().of("a")] == [False]


def test_a_start_is_expected_to_take_as_long_as_those_before() -> None:
    fleet = FleetInTheHead(spec("a"))
    fleet.want("a")
    (a,) = fleet.of("a")
    assert fleet.supervisor.expected_start_s("a", fleet.now) == UNKNOWN_S
    assert fleet.supervisor.start_share("a", fleet.now) is None
    fleet.tick(20)
    fleet.ready(a)
    fleet.hear(e.Died(a.instance_id, "killed", (), 137))
    fleet.hear(e.Gone(a.instance_id))
    assert fleet.supervisor.expected_start_s("a", fleet.now) == 20
    fleet.tick(15)
    assert fleet.supervisor.expected_start_s("a", fleet.now) == 5
    assert fleet.supervisor.start_share("a", fleet.now) == 0.75
    fleet.tick(15)
    assert fleet.supervisor.expected_start_s("a", fleet.now) == 1
    assert fleet.supervisor.start_share("a", fleet.now) == 0.99
    assert fleet.supervisor.expected_start_s("a model that is gone", fleet.now) == 0
    assert fleet.supervisor.start_share("a model that is gone", fleet.now) is None


def test_a_start_has_a_limit() -> None:
    fleet = FleetInTheHead(spec("a"))
    fleet.want("a")
    (one,) = fleet.of("a")
    assert not fleet.tick(599)
    assert e.Remove(one.instance_id) in fleet.tick(2)
    assert "start_timeout_s" in fleet.refusals[0][1].message


def test_the_root_cause_is_the_last_error_that_points_to_no_other() -> None:
    tail = ["INFO loading", "ValueError: No available memory.", "RuntimeError: failed. See root cause above."]
    assert root_cause(tail) == "ValueError: No available memory."
    assert root_cause(["just words", ""]) == "just words"
    assert root_cause([]) == ""


def test_a_busy_one_that_is_reprieved_comes_back_if_it_dies_later() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"))
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    fleet.want("b")
    fleet.leave("b")
    assert a.state is State.READY
    fleet.hear(e.Died(a.instance_id, "killed", (), 137))
    assert started(fleet.hear(e.Gone(a.instance_id)))


def test_nobody_is_reprieved_who_has_been_replaced() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c", pinned=True), gpus=2, footprints={"c": 90})
    a, c = fleet.run("a"), fleet.run("c")
    fleet.activity.busy[a.instance_id] = 1
    fleet.want("b")
    fleet.hear(e.Died(c.instance_id, "killed", (), 137))
    fleet.supervisor.models["c"].active = False
    fleet.hear(e.Gone(c.instance_id))
    for one in fleet.of("c"):
        fleet.hear(e.Died(one.instance_id, "killed", (), 137))
        fleet.hear(e.Gone(one.instance_id))
    fleet.want("a")
    fleet.leave("b")
    assert len([one for one in fleet.of("a") if not one.leaving]) == 1


def test_a_suspect_that_is_cleared_counts_as_used() -> None:
    fleet = FleetInTheHead(spec("a", idle_timeout_s=60.0))
    a = fleet.run("a")
    fleet.tick(59)
    fleet.hear(e.Suspected(a.instance_id, "reset"))
    fleet.activity.used.clear()  # what is not routed has no entry
    fleet.hear(e.Cleared(a.instance_id))
    assert not stopped(fleet.tick(59))
    assert stopped(fleet.tick(1)) == [a.instance_id]


def test_requests_for_an_external_model_hold_back_no_other() -> None:
    fleet = FleetInTheHead(spec("far", uses_gpu_memory=False), spec("a", 2), gpus=2)
    fleet.want("far")
    assert len(started(fleet.want("a"))) == 2


def test_a_model_is_not_put_away_while_one_of_it_still_starts() -> None:
    fleet = FleetInTheHead(spec("a", 2, idle_timeout_s=60.0), footprints={"a": 40})
    a = fleet.run("a")
    (b,) = fleet.of("a", State.STARTING)
    assert not stopped(fleet.tick(61))
    fleet.ready(b)
    assert stopped(fleet.tick(60)) == [a.instance_id, b.instance_id]
    for one in (a, b):
        fleet.hear(e.Gone(one.instance_id))
    assert not fleet.of("a")


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


def test_one_that_cannot_be_ended_keeps_its_room_and_holds_up_nobody() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), footprints={"a": 60, "b": 30})
    one = fleet.run("a")
    fleet.hear(e.Died(one.instance_id, "killed"))
    assert started(fleet.want("b")) == [], "one change of memory at a time"
    assert len(started(fleet.hear(e.Stuck(one.instance_id, "busy")))) == 1
    assert started(fleet.want("a")) == [], "its room is taken"
    fleet.ready(fleet.of("b")[0])
    assert len(started(fleet.hear(e.Gone(one.instance_id)))) == 1
