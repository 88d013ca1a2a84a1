# SPDX-License-Identifier: Apache-2.0
"""Sleep instead of a stop: who sleeps, who is woken, and what must hold meanwhile, each as a list of events."""

from tests.unit.fleet.simulation import FleetInTheHead, spec, started, stopped, told_to_sleep, told_to_wake
from vllm_gateway.allocator.types import Gpu
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import UNKNOWN_WAKE_S, ModelSpec
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.routing import Address


def sleeper(name: str, instances: int = 1, **more: object) -> ModelSpec:
    return spec(name, instances, sleeps=True, **more)


def two(**more: int) -> tuple[FleetInTheHead, Instance, Instance]:
    """Of which `a` sleeps, and `b` serves."""
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"), **more)  # type: ignore[arg-type]
    a = fleet.run("a")
    fleet.now += 10
    b = fleet.run("b")
    fleet.now += 10
    return fleet, a, b


def test_who_makes_room_sleeps_and_is_woken_when_it_is_wanted() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"))
    a = fleet.run("a")
    effects = fleet.want("b")
    assert told_to_sleep(effects) == [a.instance_id]
    assert not stopped(effects)
    assert not started(effects), "its memory is not back yet"
    (b_id,) = started(fleet.asleep(a))
    b = fleet.registry.get(b_id)
    assert b is not None
    assert not fleet.registry.table().of("a"), "a request to a sleeper would hang"
    fleet.ready(b)
    effects = fleet.want("a")
    assert (told_to_sleep(effects), told_to_wake(effects)) == ([b_id], [])
    assert told_to_wake(fleet.asleep(b)) == [a.instance_id]
    assert not fleet.registry.table().of("a")
    assert a.state is State.WAKING
    fleet.woken(a)
    assert [route.instance_id for route in fleet.registry.table().of("a")] == [a.instance_id]
    assert len(started(fleet.effects)) == 2, "nothing was ever started again"


def test_models_take_turns_asleep_while_the_runtime_is_away() -> None:
    fleet, a, b = two()
    fleet.runtime_away = True
    assert told_to_sleep(fleet.want("a")) == [b.instance_id]
    assert told_to_wake(fleet.asleep(b)) == [a.instance_id]


def test_a_stream_in_flight_is_not_cut_by_sleep() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"))
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    assert not told_to_sleep(fleet.want("b"))
    assert a.state is State.FALLING_ASLEEP
    assert not fleet.registry.table().of("a")
    fleet.activity.busy[a.instance_id] = 0
    assert told_to_sleep(fleet.hear(e.Drained(a.instance_id))) == [a.instance_id]


def test_a_client_that_leaves_in_time_spares_the_sleep_and_the_wake() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"))
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    fleet.want("b")
    fleet.leave("b")
    assert a.state is State.READY
    fleet.activity.busy[a.instance_id] = 0
    b = fleet.run("b")
    fleet.activity.busy[b.instance_id] = 1
    fleet.want("a")
    assert (a.state, b.state) == (State.WAKING, State.FALLING_ASLEEP)
    fleet.leave("a")
    assert (a.state, b.state) == (State.SLEEPING, State.READY)
    assert not told_to_wake(fleet.effects)


def test_what_it_keeps_is_measured_and_planned_with() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"), spec("big"), footprints={"big": 95})
    a = fleet.run("a")
    fleet.want("b")
    fleet.asleep(a, measured_mib=20)
    assert (a.held_mib, a.promised_mib) == (20, 20)
    assert not fleet.refusals
    b = fleet.run("b")
    assert told_to_sleep(fleet.want("a")) == [b.instance_id]
    assert (b.promised_mib, b.held_mib) == (6, 60), "an estimate, until it sleeps"


def test_one_that_keeps_too_much_is_stopped_after_all() -> None:
    fleet = FleetInTheHead(sleeper("a"), spec("big"), footprints={"big": 92})
    a = fleet.run("a")
    effects = fleet.want("big")
    assert told_to_sleep(effects) == [a.instance_id], "by the estimate of 6 MiB there is room"
    assert stopped(fleet.asleep(a, measured_mib=20)) == [a.instance_id]
    assert len(started(fleet.hear(e.Gone(a.instance_id)))) == 1
    fleet = FleetInTheHead(sleeper("a"), spec("big"), footprints={"big": 96})
    a = fleet.run("a")
    assert stopped(fleet.want("big")) == [a.instance_id]


def test_sleepers_are_stopped_before_anybody_who_serves_and_the_least_recently_used_first() -> None:
    fleet = FleetInTheHead(*(sleeper(name) for name in "abcd"), footprints={"d": 88})
    a, b, c = fleet.run("a"), fleet.run("b"), fleet.run("c")
    effects = fleet.want("d")
    assert stopped(effects) == [a.instance_id]
    assert (b.state, c.state) == (State.SLEEPING, State.FALLING_ASLEEP)


def test_one_memory_change_at_a_time_on_a_gpu() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"), sleeper("c"), footprints={"a": 40, "b": 40, "c": 85})
    a, b = fleet.run("a"), fleet.run("b")
    (first,) = told_to_sleep(fleet.want("c"))
    assert first == a.instance_id
    assert told_to_sleep(fleet.asleep(a)) == [b.instance_id]
    assert len(started(fleet.asleep(b))) == 1
    assert (a.state, b.state) == (State.SLEEPING, State.SLEEPING)
    fleet.want("a")
    assert not told_to_wake(fleet.tick(1)), "c starts there"


def test_the_least_recently_used_sleeper_makes_room_in_the_machines_memory() -> None:
    limit = 2 * 76  # 1.4 x (60 - 6) each
    fleet = FleetInTheHead(*(sleeper(name) for name in "abcd"), host_mib=limit)
    a, b, c = (fleet.run(name) for name in "abc")
    fleet.now += 10
    effects = fleet.want("d")
    assert stopped(effects) == [a.instance_id]
    assert not told_to_sleep(effects)
    assert b.state is State.SLEEPING
    assert told_to_sleep(fleet.hear(e.Gone(a.instance_id))) == [c.instance_id]


def test_without_a_place_in_the_machines_memory_it_is_stopped() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"), host_mib=75)
    a = fleet.run("a")
    assert stopped(fleet.want("b")) == [a.instance_id]
    assert "asleep it would take 76 MiB of the machine's memory (host_memory_mib)" in a.why
    known = FleetInTheHead(sleeper("a", parameters_mib=50), sleeper("b"), host_mib=75)
    a = known.run("a")
    assert told_to_sleep(known.want("b")) == [a.instance_id]


def test_what_does_not_fall_asleep_is_stopped_and_nobody_waits_for_ever() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"))
    a = fleet.run("a")
    fleet.want("b")
    assert stopped(fleet.hear(e.NotMoved(a.instance_id, "500"))) == [a.instance_id]
    fleet.leave("b")
    assert a.state is State.STOPPING, "nobody knows whether it sleeps: no reprieve"
    assert not fleet.refusals


def test_what_does_not_wake_is_stopped_and_started_anew() -> None:
    fleet, a, b = two()
    fleet.want("a")
    fleet.asleep(b)
    assert stopped(fleet.hear(e.NotMoved(a.instance_id, "no answer"))) == [a.instance_id]
    assert len(started(fleet.hear(e.Gone(a.instance_id)))) == 1
    assert not fleet.refusals


def test_death_is_noticed_asleep_and_waking_and_costs_a_start() -> None:
    fleet, a, b = two()
    fleet.hear(e.Died(a.instance_id, "killed", (), 137))
    assert a.state is State.FAILED
    assert not started(fleet.hear(e.Gone(a.instance_id))), "nobody wants it"
    assert fleet.supervisor.models["a"].failures == 0
    fleet.want("a")
    fleet.asleep(b)
    (new,) = fleet.of("a")
    fleet.ready(new)
    fleet.want("b")
    fleet.asleep(new)
    assert (new.state, b.state) == (State.SLEEPING, State.WAKING)
    fleet.hear(e.Died(b.instance_id, "killed", (), 137))
    assert len(started(fleet.hear(e.Gone(b.instance_id)))) == 1
    assert not fleet.refusals


def test_an_idle_sleeper_is_stopped() -> None:
    fleet = FleetInTheHead(sleeper("a", idle_timeout_s=60.0), sleeper("b"))
    a = fleet.run("a")
    fleet.now += 10
    fleet.run("b")
    assert not stopped(fleet.tick(49))
    assert stopped(fleet.tick(1)) == [a.instance_id]


def test_a_wake_counts_as_the_time_of_a_wake() -> None:
    fleet, a, b = two()
    assert fleet.supervisor.expected_start_s("a", fleet.now) == UNKNOWN_WAKE_S
    fleet.want("a")
    fleet.asleep(b)
    fleet.now += 2
    fleet.woken(a)
    fleet.now += 10
    fleet.want("b")
    fleet.asleep(a)
    assert fleet.supervisor.expected_start_s("a", fleet.now) == 2
    assert fleet.supervisor.models["a"].starts.typical_s == 0, "starts are another matter"
    fleet.now += 1
    assert fleet.supervisor.start_share("b", fleet.now) is None
    fleet.woken(b)
    assert fleet.supervisor.models["b"].wakes.typical_s == 1


def test_a_new_start_elsewhere_takes_the_place_of_a_sleeper_that_cannot_be_woken() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b", pinned=True), gpus=2)
    fleet.hear(e.GpusRead([Gpu("gpu0", 0, "card", 100), Gpu("gpu1", 1, "card", 100, problem="away")]))
    a = fleet.run("a")
    b = fleet.run("b")
    assert (a.state, a.gpu_ids, b.gpu_ids) == (State.SLEEPING, ("gpu0",), ("gpu0",))
    fleet.hear(e.GpusRead([Gpu("gpu0", 0, "card", 100), Gpu("gpu1", 1, "card", 100)]))
    effects = fleet.want("a")
    assert [one.gpu_ids for one in fleet.of("a", State.STARTING)] == [("gpu1",)]
    assert len(started(effects)) == 1
    assert stopped([*effects, *fleet.tick(1)]) == [a.instance_id]


def test_extra_instances_wake_into_free_room_only() -> None:
    fleet = FleetInTheHead(sleeper("a", 2), sleeper("b"), gpus=2)
    fleet.run("a")
    (second,) = fleet.of("a", State.STARTING)
    fleet.ready(second)
    fleet.now += 10
    b = fleet.run("b")
    assert len(fleet.of("a", State.SLEEPING)) == 1
    fleet.tick(10)
    assert len(fleet.of("a", State.SLEEPING)) == 1, "b keeps its place"
    fleet.hear(e.Died(b.instance_id, "killed"))
    fleet.supervisor.models["b"].active = False
    assert told_to_wake(fleet.hear(e.Gone(b.instance_id)))


def test_what_an_earlier_gateway_put_to_sleep_is_woken() -> None:
    fleet = FleetInTheHead(sleeper("a"))
    one = fleet.registry.add(
        Instance("i9", "old", "a", 1, "hash", 8, gpu_ids=("gpu0",), reserved_mib=60, launched=True, adopted=True)
    )
    one.running = Running("old", Address("127.0.0.1", 8000))
    fleet.hear(e.FellAsleep("i9", 9))
    assert (one.state, one.held_mib) == (State.SLEEPING, 9)
    assert told_to_wake(fleet.want("a")) == ["i9"]


def test_a_sleeper_whose_settings_have_changed_is_stopped() -> None:
    fleet, a, _ = two()
    effects = fleet.reconfigure(sleeper("a", spec_hash="new"), sleeper("b"))
    assert stopped(effects) == [a.instance_id]


def test_nobody_sleeps_while_another_gateway_sends_requests_there() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"))
    fleet.activity.alone = False
    a = fleet.run("a")
    assert stopped(fleet.want("b")) == [a.instance_id]


def test_who_hands_over_hears_of_the_sleepers_that_the_other_wakes() -> None:
    fleet, a, b = two()
    fleet.activity.busy[b.instance_id] = 1
    fleet.want("a")
    fleet.hear(e.HandOver(active=True))
    assert a.state is State.SLEEPING, "its wake is the other's to decide"
    fleet.hear(e.WokeUp(a.instance_id))
    assert fleet.registry.table().of("a")


def test_a_start_that_others_make_way_for_waits_as_long_as_it_would_take_for_a_wake() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"), sleeper("c"), gpus=2, min_resident_s=60)
    a = fleet.run("a")
    fleet.now += 10
    c = fleet.run("c")
    fleet.now += 10
    b = fleet.run("b")
    assert (a.state, b.gpu_ids) == (State.SLEEPING, a.gpu_ids)
    fleet.now += 10
    fleet.supervisor.models["a"].starts.add(40)
    fleet.supervisor.models["a"].starts.add(40)
    fleet.activity.busy[b.instance_id] = 1
    fleet.want("a")
    assert fleet.of("c", State.READY) == [c], "idle on the other GPU, while b is in its quantum"
    fleet.tick(39)
    assert fleet.of("c", State.READY) == [c]
    fleet.tick(1)
    assert fleet.of("c", State.FALLING_ASLEEP) == [c]
    assert fleet.of("a", State.STARTING)


def test_what_shares_the_machines_memory_is_stopped_as_its_sleep_would_make_no_room() -> None:
    fleet = FleetInTheHead(sleeper("a"), sleeper("b"))
    fleet.hear(e.GpusRead([Gpu("gpu0", 0, "GB10", 100, shared=True)]))
    a = fleet.run("a")
    effects = fleet.want("b")
    assert (stopped(effects), told_to_sleep(effects)) == ([a.instance_id], [])
    assert "nothing back" in a.why
