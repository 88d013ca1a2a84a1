# SPDX-License-Identifier: Apache-2.0
"""The supervisor: what starts, in which order, and what is put away when nobody asks for it."""

from tests.unit.fleet.simulation import FleetInTheHead, spec, started, stopped
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.instance import State
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
