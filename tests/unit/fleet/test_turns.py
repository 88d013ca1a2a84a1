# SPDX-License-Identifier: Apache-2.0
"""Starts that nobody waits for, beside those that clients wait for: who goes first, and who ends for it."""

from tests.unit.fleet.simulation import FleetInTheHead, spec, started, stopped
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.instance import Instance, State


def abandoned(fleet: FleetInTheHead, model: str) -> Instance:
    """Its start, which the client that wanted it has not waited for."""
    fleet.want(model)
    fleet.leave(model)
    (one,) = fleet.of(model, State.STARTING)
    fleet.tick(2)
    return one


def test_a_start_that_nobody_waits_for_makes_room() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"))
    a = abandoned(fleet, "a")
    assert stopped(fleet.want("b")) == [a.instance_id]
    (b,) = fleet.of("b")
    assert started(fleet.hear(e.Gone(a.instance_id))) == [b.instance_id]
    assert not fleet.of("a"), "nobody wants it"


def test_what_fits_beside_it_does_not_wait_behind_it_either() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c"), footprints={"a": 60, "b": 30, "c": 60})
    a = abandoned(fleet, "a")
    assert stopped(fleet.want("b")) == [a.instance_id]
    assert not stopped(fleet.want("c"))
    (b,) = fleet.of("b")
    assert started(fleet.hear(e.Gone(a.instance_id))) == [b.instance_id]
    assert started(fleet.ready(b)) == [one.instance_id for one in fleet.of("c")]


def test_who_has_just_left_may_come_back_for_it() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"))
    fleet.want("a")
    fleet.leave("a")
    (a,) = fleet.of("a")
    fleet.now += 1
    assert not stopped(fleet.want("b"))
    fleet.want("a")
    fleet.leave("a")
    assert not stopped(fleet.tick(1.5))
    assert stopped(fleet.tick(0.5)) == [a.instance_id]


def test_one_that_is_waited_for_is_waited_for() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"))
    fleet.want("a")
    fleet.want("b")
    assert not stopped(fleet.tick(100))
    (a,) = fleet.of("a")
    assert a.state is State.STARTING


def test_it_leaves_before_anybody_who_serves() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c"), gpus=2)
    served = fleet.run("a")
    fleet.now += 1000
    b = abandoned(fleet, "b")
    assert stopped(fleet.want("c")) == [b.instance_id]
    assert served.state is State.READY


def test_a_pinned_one_and_one_of_an_earlier_gateway_stay() -> None:
    fleet = FleetInTheHead(spec("a", pinned=True), spec("b"), spec("c"), footprints={"a": 30, "b": 30, "c": 30})
    abandoned(fleet, "a")
    assert not stopped(fleet.want("c"))
    fleet = FleetInTheHead(spec("b"), spec("c"))
    fleet.adopt("b", "gpu0", 30)
    fleet.activity.busy.clear()
    assert not stopped(fleet.want("c"))


def test_while_the_runtime_is_away_it_goes_on() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c"), footprints={"b": 30})
    a = abandoned(fleet, "a")
    fleet.runtime_away = True
    assert not stopped([*fleet.want("b"), *fleet.want("c")])
    fleet.runtime_away = False
    assert stopped(fleet.tick(1)) == [a.instance_id]


def test_a_further_instance_makes_way_and_comes_back() -> None:
    fleet = FleetInTheHead(spec("a", 2), spec("b"), footprints={"a": 30, "b": 30})
    first = fleet.run("a")
    (second,) = fleet.of("a", State.STARTING)
    fleet.tick(2)
    assert stopped(fleet.want("b")) == [second.instance_id]
    fleet.hear(e.Gone(second.instance_id))
    (b,) = fleet.of("b")
    assert b.launched
    assert started(fleet.ready(b)) == [one.instance_id for one in fleet.of("a", State.STARTING)]
    assert first.state is State.READY


def test_a_replacement_waits_until_those_are_served_whom_clients_wait_for() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c"), footprints={"a": 30, "b": 30, "c": 10})
    old = fleet.run("a")
    fleet.now += 10
    assert started(fleet.reconfigure(spec("a", spec_hash="other"), spec("b"), spec("c")))
    new = fleet.of("a")[1]
    assert stopped(fleet.want("b")) == [new.instance_id]
    fleet.hear(e.Gone(new.instance_id))
    (b,) = fleet.of("b")
    (again,) = fleet.of("a", State.STARTING)
    assert b.launched
    assert fleet.supervisor.waits_for(again) == f"{b.name}, which starts"
    assert not again.launched
    fleet.want("c")
    (c,) = fleet.of("c")
    assert started(fleet.ready(b)) == [c.instance_id], "it was asked for later, but by somebody"
    assert started(fleet.ready(c)) == [again.instance_id]
    fleet.ready(again)
    assert old.state is State.STOPPING


def test_nothing_takes_the_turn_of_a_start_that_waits_for_its_room() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b", 2), spec("c"), footprints={"a": 60, "b": 20, "c": 60})
    a = fleet.run("a")
    b = fleet.run("b")
    further = fleet.of("b", State.STARTING)[0]
    fleet.activity.busy[a.instance_id] = 2
    fleet.now += 5
    assert not stopped(fleet.want("c")), "a has yet to finish its requests: the further b may use that time"
    fleet.hear(e.Died(further.instance_id, "killed"))
    fleet.hear(e.Gone(further.instance_id))
    fleet.tick(10)
    (again,) = fleet.of("b", State.STARTING)
    (c,) = fleet.of("c")
    assert not again.launched
    assert fleet.supervisor.waits_for(again) == f"{c.name}, for which clients wait"
    assert fleet.supervisor.waits_for(c) == f"{a.name}, which finishes 2 requests"
    fleet.activity.busy[a.instance_id] = 0
    assert stopped(fleet.hear(e.Drained(a.instance_id))) == [a.instance_id]
    assert fleet.supervisor.waits_for(c) == f"{a.name}, which ends"
    assert started(fleet.hear(e.Gone(a.instance_id))) == [c.instance_id]
    assert fleet.supervisor.waits_for(c) is None
    assert b.state is State.READY


def test_a_start_that_holds_up_the_end_of_those_who_make_way_ends_when_they_could() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c"), footprints={"a": 60, "b": 20, "c": 70})
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    b = abandoned(fleet, "b")
    fleet.want("c")
    assert (a.state, b.state) == (State.DRAINING, State.STARTING)
    fleet.activity.busy[a.instance_id] = 0
    assert set(stopped(fleet.hear(e.Drained(a.instance_id)))) == {a.instance_id, b.instance_id}


def test_a_reservation_for_which_nobody_waits_makes_room() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b", 2), spec("c"), gpus=1, footprints={"a": 10, "b": 30, "c": 50})
    b = fleet.run("b")
    fleet.hear(e.Died(fleet.of("b", State.STARTING)[0].instance_id, "killed"))
    fleet.hear(e.Gone(fleet.of("b", State.FAILED)[0].instance_id))
    fleet.want("a")
    fleet.tick(10)
    (further,) = fleet.of("b", State.STARTING)
    assert not further.launched, "it is a's turn"
    fleet.want("c")
    assert fleet.of("b") == [b]
    assert [one.state for one in fleet.of("c")] == [State.STARTING]


def test_an_empty_gpu_is_better_than_one_where_somebody_starts() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), gpus=2, footprints={"a": 30, "b": 30})
    fleet.want("a")
    assert started(fleet.want("b"))


def test_where_it_could_start_elsewhere_it_does_not_wait_for_its_turn() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c"), gpus=2, footprints={"a": 60, "b": 80, "c": 30})
    b = fleet.run("b")
    fleet.activity.busy[b.instance_id] = 1
    fleet.want("a")
    fleet.want("c")
    (c,) = fleet.of("c")
    assert not c.launched, "it is a's turn"
    fleet.hear(e.Died(b.instance_id, "killed"))
    assert started(fleet.hear(e.Gone(b.instance_id))) == [one.instance_id for one in fleet.of("c")]
    assert fleet.of("c")[0].gpu_ids == b.gpu_ids
    assert fleet.of("c")[0].name == c.name


def test_nor_for_those_who_were_to_make_way_and_they_stay() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), spec("c"), gpus=2)
    a, b = fleet.run("a"), fleet.run("b")
    fleet.activity.busy = {a.instance_id: 1, b.instance_id: 1}
    fleet.activity.used[b.instance_id] = fleet.now + 1
    fleet.want("c")
    assert fleet.of("a", State.DRAINING) == [a]
    fleet.hear(e.Died(b.instance_id, "killed"))
    assert started(fleet.hear(e.Gone(b.instance_id))) == [one.instance_id for one in fleet.of("c")]
    assert fleet.of("a", State.READY) == [a]


def test_a_wake_that_hangs_and_that_nobody_waits_for_makes_way() -> None:
    fleet = FleetInTheHead(spec("a", sleeps=True), spec("b"))
    a = fleet.run("a")
    fleet.run("b")
    assert fleet.of("a", State.SLEEPING) == [a]
    fleet.now += 5
    fleet.want("a")
    for one in fleet.of("b", State.STOPPING):
        fleet.hear(e.Gone(one.instance_id))
    assert a.moving
    fleet.leave("a")
    fleet.tick(5)
    assert not stopped(fleet.want("b")), "it may well be awake in a moment"
    assert stopped(fleet.tick(10)) == [a.instance_id]
    fleet.hear(e.WokeUp(a.instance_id))
    assert started(fleet.hear(e.Gone(a.instance_id))) == [one.instance_id for one in fleet.of("b")]
