# SPDX-License-Identifier: Apache-2.0
"""The supervisor where room is scarce: who makes way, who waits, and who is spared."""

from tests.unit.fleet.simulation import FleetInTheHead, spec, started, stopped
from vllm_gateway.allocator.types import Gpu
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.routing import Address


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
    fleet.hear(e.Launched(b.instance_id, Running(b.name, Address("127.0.0.1", 8000))))
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


def test_a_discovery_run_waits_for_the_busy() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), unknown=["b"])
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    fleet.want("b")
    assert a.state is State.READY
    assert not fleet.refusals
    fleet.activity.busy[a.instance_id] = 0
    assert stopped(fleet.tick(1)) == [a.instance_id]


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


def test_one_that_cannot_be_ended_keeps_its_room_and_holds_up_nobody() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), footprints={"a": 60, "b": 30})
    one = fleet.run("a")
    fleet.hear(e.Died(one.instance_id, "killed"))
    assert started(fleet.want("b")) == [], "one change of memory at a time"
    assert len(started(fleet.hear(e.Stuck(one.instance_id, "busy")))) == 1
    assert started(fleet.want("a")) == [], "its room is taken"
    fleet.ready(fleet.of("b")[0])
    assert len(started(fleet.hear(e.Gone(one.instance_id)))) == 1
