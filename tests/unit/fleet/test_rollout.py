# SPDX-License-Identifier: Apache-2.0
"""A changed configuration, as lists of events: what leaves, what is replaced and in which order."""

import math

from tests.unit.fleet.simulation import FleetInTheHead, spec, started, stopped
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.adoption import gone
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import ModelSpec


def hashes(fleet: FleetInTheHead, model: str, *states: State) -> list[str]:
    return [one.spec_hash for one in fleet.of(model) if one.state in (states or (State.READY,))]


def test_a_model_that_is_gone_is_drained_and_forgotten() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), gpus=2)
    a, b = fleet.run("a"), fleet.run("b")
    fleet.activity.busy[a.instance_id] = 1
    assert not stopped(fleet.reconfigure(spec("b")))
    assert fleet.of("a", State.DRAINING) == [a], "its requests finish"
    fleet.activity.busy[a.instance_id] = 0
    assert stopped(fleet.hear(e.Drained(a.instance_id))) == [a.instance_id]
    assert b.state is State.READY
    fleet.hear(e.Gone(a.instance_id))
    assert list(fleet.supervisor.models) == ["b"]
    fleet.hear(e.Wanted("a"))
    fleet.hear(e.Unwanted("a"))


def test_a_model_that_is_gone_while_it_starts_is_stopped() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"), footprints={"a": 40, "b": 40})
    fleet.want("a")
    fleet.want("b")
    (a,) = fleet.of("a")
    assert stopped(fleet.reconfigure()) == [a.instance_id]
    assert not fleet.of("b"), "it held a reservation only"
    fleet.hear(e.BecameReady(a.instance_id))
    fleet.hear(e.Died(a.instance_id, "killed"))
    fleet.hear(e.Gone(a.instance_id))
    assert not len(fleet.registry)
    assert not fleet.supervisor.models


def test_a_new_model_is_started_when_it_is_asked_for() -> None:
    fleet = FleetInTheHead(spec("a"))
    fleet.reconfigure(spec("a"), spec("new"))
    assert not fleet.of("new")
    assert len(started(fleet.want("new"))) == 1


def test_where_there_is_room_the_new_one_is_ready_before_the_old_one_leaves() -> None:
    fleet = FleetInTheHead(spec("a", 2), gpus=3)
    fleet.run("a")
    fleet.ready(fleet.of("a", State.STARTING)[0])
    assert hashes(fleet, "a") == ["hash", "hash"]
    seen = []
    fleet.reconfigure(spec("a", 2, spec_hash="new"))
    for _ in range(4):
        seen.append(sorted(hashes(fleet, "a")))
        for one in fleet.of("a", State.STARTING):
            fleet.ready(one)
        for one in fleet.of("a", State.STOPPING):
            fleet.hear(e.Gone(one.instance_id))
    assert seen == [["hash", "hash"], ["hash", "new"], ["new", "new"], ["new", "new"]]


def test_without_room_the_old_one_leaves_first_and_only_one_at_a_time() -> None:
    fleet = FleetInTheHead(spec("a", 2), gpus=2)
    fleet.run("a")
    fleet.ready(fleet.of("a", State.STARTING)[0])
    first = stopped(fleet.reconfigure(spec("a", 2, spec_hash="new")))
    assert len(first) == 1
    assert started(fleet.hear(e.Gone(first[0])))
    assert hashes(fleet, "a") == ["hash"]
    assert not stopped(fleet.tick(10)), "the other one waits until the new one is ready"
    (second,) = stopped(fleet.ready(fleet.of("a", State.STARTING)[0]))
    fleet.hear(e.Gone(second))
    fleet.ready(fleet.of("a", State.STARTING)[0])
    assert hashes(fleet, "a") == ["new", "new"]


def test_while_the_new_settings_fail_the_old_ones_serve() -> None:
    fleet = FleetInTheHead(spec("a"), gpus=2)
    a = fleet.run("a")
    fleet.reconfigure(spec("a", spec_hash="bad"))
    for _ in range(5):
        for one in fleet.of("a", State.STARTING):
            fleet.hear(e.Died(one.instance_id, "exit status 2", ("error: unrecognized arguments: --foo",), 2))
            fleet.hear(e.Gone(one.instance_id))
        fleet.tick(1)
        assert fleet.of("a", State.READY) == [a]
    assert "--foo" in str(fleet.supervisor.models["a"].last_error)
    assert not fleet.refusals
    fleet.reconfigure(spec("a", spec_hash="good"))
    fleet.ready(fleet.of("a", State.STARTING)[0])
    assert hashes(fleet, "a") == ["good"]


def test_settings_that_can_never_fit_replace_nothing() -> None:
    fleet = FleetInTheHead(spec("a"))
    a = fleet.run("a")
    fleet.footprints["a"] = 1000
    fleet.reconfigure(spec("a", spec_hash="huge"))
    fleet.tick(100)
    assert fleet.of("a", State.READY) == [a]
    assert "1000" in str(fleet.supervisor.models["a"].why_fewer)


def test_fewer_instances_let_the_idle_one_go_and_more_start_at_once() -> None:
    fleet = FleetInTheHead(spec("a", 2), gpus=2)
    busy = fleet.run("a")
    other = fleet.of("a", State.STARTING)[0]
    fleet.ready(other)
    fleet.activity.busy[busy.instance_id] = 1
    assert stopped(fleet.reconfigure(spec("a", 1))) == [other.instance_id]
    fleet.hear(e.Gone(other.instance_id))
    assert len(started(fleet.reconfigure(spec("a", 2)))) == 1


def test_a_new_limit_counts_for_what_runs() -> None:
    fleet = FleetInTheHead(spec("a"))
    fleet.run("a")
    fleet.reconfigure(spec("a", max_in_flight=3))
    assert [route.max_in_flight for route in fleet.registry.table().of("a")] == [3]


def test_an_engine_of_somebody_else_is_never_replaced() -> None:
    fleet = FleetInTheHead(spec("far", uses_gpu_memory=False))
    one = Instance(fleet.registry.new_id(), "far@x:1", "far", 1, "", 8, external=True, launched=True)
    fleet.hear(e.BecameReady(fleet.registry.add(one).instance_id))
    fleet.reconfigure(spec("far", uses_gpu_memory=False, spec_hash="other"))
    assert one.state is State.READY


def test_nobody_is_reprieved_for_a_model_that_is_gone() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b"))
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    fleet.want("b")
    fleet.reconfigure(spec("b", spec_hash="other"))
    assert fleet.of("a", State.DRAINING) == [a]


def handing_over(*specs: ModelSpec) -> FleetInTheHead:
    """Another gateway still has requests here."""
    fleet = FleetInTheHead(*specs, gpus=2)
    fleet.activity.alone = False
    return fleet


def test_what_another_gateway_still_uses_of_a_model_that_is_gone_is_drained() -> None:
    fleet = handing_over(spec("b"))
    one = fleet.adopt("a", "gpu0", 60)
    assert not stopped(fleet.hear(e.Inherited([gone("a")])))
    assert fleet.of("a", State.DRAINING) == [one]
    fleet.hear(e.BecameReady(one.instance_id))
    fleet.want("b")
    assert [other.gpu_ids for other in fleet.of("b")] == [("gpu1",)], "its room is not free yet"
    fleet.activity.busy.clear()
    assert stopped(fleet.tick(1)) == [one.instance_id]
    fleet.hear(e.Gone(one.instance_id))
    assert list(fleet.supervisor.models) == ["b"]


def test_what_another_gateway_still_uses_is_replaced_when_it_is_ready_to_this_one_too() -> None:
    fleet = handing_over(spec("a", spec_hash="new"))
    one = fleet.adopt("a", "gpu0", 60)
    fleet.tick(1)
    assert one.state is State.STARTING
    fleet.hear(e.BecameReady(one.instance_id))
    fleet.ready(fleet.of("a", State.STARTING)[0])
    assert fleet.of("a", State.DRAINING) == [one], "its request finishes"


def test_of_a_surplus_that_another_gateway_still_uses_the_idle_one_goes() -> None:
    fleet = handing_over(spec("a"))
    busy, idle = fleet.adopt("a", "gpu0", 60), fleet.adopt("a", "gpu1", 60)
    fleet.activity.busy.pop(idle.instance_id)
    assert stopped(fleet.tick(1)) == [idle.instance_id]
    assert busy.state is State.STARTING


def test_changed_and_fewer_at_once_lets_the_surplus_go_at_once() -> None:
    fleet = FleetInTheHead(spec("a", 2), gpus=2)
    fleet.run("a")
    fleet.ready(fleet.of("a", State.STARTING)[0])
    fleet.reconfigure(spec("a", 1, spec_hash="other"))
    assert len([one for one in fleet.of("a") if not one.leaving]) == 1


def test_fewer_in_the_middle_of_an_update_are_as_few_as_they_should_be_at_once() -> None:
    fleet = FleetInTheHead(spec("a"), gpus=3)
    fleet.run("a")
    fleet.reconfigure(spec("a", 3, spec_hash="new"))
    assert len(fleet.of("a", State.STARTING)) == 2
    fleet.reconfigure(spec("a", 1, spec_hash="new"))
    assert len([one for one in fleet.of("a") if not one.leaving]) == 1


def test_a_pause_is_told_while_it_lasts_and_no_longer() -> None:
    fleet = FleetInTheHead(spec("a"), gpus=1)
    a = fleet.run("a")
    fleet.hear(e.Died(a.instance_id, "exit status 2", ("error: out of cards",), 2))
    fleet.hear(e.Gone(a.instance_id))
    state = fleet.supervisor.models["a"]
    for one in fleet.of("a", State.STARTING):
        fleet.hear(e.Died(one.instance_id, "exit status 2", ("error: out of cards",), 2))
        fleet.hear(e.Gone(one.instance_id))
    state.active = True
    pause = state.retry_at - fleet.now
    assert pause > 0
    assert str(state.why_fewer_at(fleet.now)).startswith(f"waits {math.ceil(pause)} s after a failed start: ")
    assert str(state.why_fewer_at(fleet.now + pause - 0.4)).startswith("waits 1 s")
    assert "after a failed start" not in str(state.why_fewer_at(state.retry_at))
