# SPDX-License-Identifier: Apache-2.0
"""The promises of a plan, on fleets that nobody would think of, and its preferences on those that everybody has."""

from dataclasses import replace
from itertools import chain, combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_gateway.allocator.plan import plan
from vllm_gateway.allocator.types import Gpu, Need, NoRoom, Placement, Policy, Resident

POLICY = Policy(margin_mib=512, min_resident_s=60, max_swap_wait_s=120, idle_s=2)
NOW = 1000.0
Case = tuple[list[Gpu], list[Resident], Need]


def gpu(index: int = 0, total_mib: int = 24576, foreign_mib: int = 0, problem: str | None = None) -> Gpu:
    return Gpu(f"g{index}", index, "NVIDIA L4", total_mib, foreign_mib=foreign_mib, problem=problem)


def resident(name: str, mib: int = 10000, gpus: str = "g0", **more: object) -> Resident:
    return replace(Resident(name, f"model-{name}", tuple(gpus.split()), mib), **more)  # type: ignore[arg-type]


def keeps_its_place(need: Need, one: Resident) -> bool:
    if one.waited_for and one.last_used <= one.ready_since:
        return True
    in_use = one.busy or one.waited_for or NOW - one.last_used < POLICY.idle_s
    young = NOW - one.ready_since < POLICY.min_resident_s
    return in_use and (young or (one.waited_for and need.waited_s < POLICY.max_swap_wait_s))


def rooms(gpus: list[Gpu], residents: list[Resident], gone: set[str]) -> dict[str, int]:
    return {
        g.gpu_id: g.total_mib
        - POLICY.margin_mib
        - g.foreign_mib
        - sum(r.mib for r in residents if g.gpu_id in r.gpu_ids and not r.leaving and r.instance_id not in gone)
        for g in gpus
        if g.problem is None
    }


def fits(need: Need, gpus: list[Gpu], residents: list[Resident], gone: set[str]) -> bool:
    return sum(room >= need.mib for room in rooms(gpus, residents, gone).values()) >= need.gpu_count


def after(residents: list[Resident], answer: Placement) -> list[Resident]:
    """Those who stay, and what those who sleep then still keep."""
    kept = [r for r in residents if r.instance_id not in answer.evict]
    return [replace(r, mib=r.asleep_mib or 0) if r.instance_id in answer.sleep else r for r in kept]


def may_go(need: Need, one: Resident) -> bool:
    allowed = one.evictable and not one.asleep and not one.leaving and not one.pinned and one.model != need.model
    return need.may_evict and allowed and (need.may_drain_busy or not one.busy) and not keeps_its_place(need, one)


def may_be_stopped_asleep(need: Need, one: Resident) -> bool:
    return need.may_evict and one.asleep and one.evictable and not one.leaving and not one.pinned


def fleet_of(seed: int) -> tuple[list[Gpu], list[Resident], Need]:
    """Up to 4 GPUs, up to 7 residents that fit them, some on several GPUs, and somebody who wants in.

    From a seed, since that is ten times as fast as drawing each figure.
    """
    dice = Random(seed)
    gpus = [
        Gpu(
            f"g{index}",
            index,
            "card",
            dice.choice([8192, 16384, 24576]),
            foreign_mib=dice.choice([0, 0, 900]),
            problem=dice.choice([None, None, None, None, "fell off the bus"]),
        )
        for index in range(dice.randint(1, 4))
    ]
    residents: list[Resident] = []
    for number in range(dice.randint(0, 12)):
        one = Resident(
            f"i{number}",
            dice.choice("abcd"),
            tuple(g.gpu_id for g in dice.sample(gpus, dice.choice([1, 1, min(2, len(gpus))]))),
            dice.choice([1000, 2500, 4000, 7000, 12000]),
            busy=dice.random() < 0.4,
            waited_for=dice.random() < 0.2,
            pinned=dice.random() < 0.15,
            evictable=dice.random() < 0.85,
            leaving=dice.random() < 0.15,
            changing=dice.random() < 0.15,
            ready_since=dice.choice([100.0, 100.0, 970.0]),
            last_used=float(dice.choice([*range(100, 110), 999])),
        )
        if len(residents) < 7 and all(room >= 0 for room in rooms(gpus, [*residents, one], set()).values()):
            residents.append(one)
    need = Need(
        dice.choice("abcd"),
        dice.choice([500, 3000, 5000, 7000, 9000, 12000, 20000]),
        dice.choice([1, 1, 1, 2, 2, 3]),
        may_evict=dice.random() < 0.8,
        may_drain_busy=dice.random() < 0.6,
        waited_s=dice.choice([0.0, 119.0, 120.0]),
    )
    return gpus, residents, need


def sleepy_fleet_of(seed: int) -> tuple[list[Gpu], list[Resident], Need]:
    """The same, in which some sleep and some may; and the need may be that of a sleeper that wakes where it is."""
    gpus, residents, need = fleet_of(seed)
    dice = Random(seed)
    sleepy: list[Resident] = []
    for one in residents:
        if one.leaving or dice.random() < 0.2:
            sleepy.append(one)
        elif dice.random() < 0.5:
            sleepy.append(replace(one, mib=one.mib // 8, asleep=True, busy=False))
        else:
            sleepy.append(replace(one, asleep_mib=one.mib // dice.choice([2, 8])))
    if dice.random() < 0.5:
        chosen = dice.sample(gpus, min(need.gpu_count, len(gpus)))
        need = replace(need, gpu_ids=tuple(g.gpu_id for g in chosen), gpu_count=len(chosen))
    return gpus, sleepy, need


cases = st.integers(0, 1 << 32).map(fleet_of)
sleepy_cases = st.integers(0, 1 << 32).map(sleepy_fleet_of)


@settings(max_examples=500, deadline=None)
@given(cases)
def test_a_placement_never_exceeds_what_the_gpus_have(case: Case) -> None:
    gpus, residents, need = case
    answer = plan(need, gpus, residents, POLICY, NOW)
    if isinstance(answer, Placement):
        after = rooms(gpus, residents, set(answer.evict))
        assert len(set(answer.gpu_ids)) == need.gpu_count
        assert all(after[gpu_id] >= need.mib for gpu_id in answer.gpu_ids)


@settings(max_examples=500, deadline=None)
@given(cases)
def test_a_refusal_is_honest(case: Case) -> None:
    gpus, residents, need = case
    answer = plan(need, gpus, residents, POLICY, NOW)
    if isinstance(answer, NoRoom):
        assert not fits(need, gpus, residents, {r.instance_id for r in residents if may_go(need, r)})
        all_who_can = {r.instance_id for r in residents if not r.pinned or r.model == need.model}
        assert answer.never == (not fits(need, gpus, residents, all_who_can))
        assert answer.reason


@settings(max_examples=500, deadline=None)
@given(cases)
def test_only_those_are_evicted_who_may_be_and_only_if_it_helps(case: Case) -> None:
    gpus, residents, need = case
    answer = plan(need, gpus, residents, POLICY, NOW)
    if isinstance(answer, Placement):
        by_id = {r.instance_id: r for r in residents}
        evicted = [by_id[instance_id] for instance_id in answer.evict]
        assert all(may_go(need, one) for one in evicted)
        assert not (evicted and fits(need, gpus, residents, set()))
        order = [(one.busy, one.last_used) for one in evicted]
        assert order == sorted(order)


@settings(max_examples=500, deadline=None)
@given(cases)
def test_no_cheaper_eviction_would_do(case: Case) -> None:
    """Idle before busy, no smaller set, the least recently used: by trying them all."""
    gpus, residents, need = case
    answer = plan(need, gpus, residents, POLICY, NOW)
    if isinstance(answer, Placement) and answer.evict:

        def cost(members: list[Resident]) -> tuple[list[int], list[float]]:
            counts = [sum(one.busy == wanted for one in members) for wanted in (True, False)]
            return counts, sorted((one.last_used for one in members), reverse=True)

        candidates = [r for r in residents if may_go(need, r)]
        chosen = cost([r for r in residents if r.instance_id in answer.evict])
        for subset in chain.from_iterable(combinations(candidates, n) for n in range(len(candidates) + 1)):
            if fits(need, gpus, residents, {r.instance_id for r in subset}):
                assert chosen <= cost(list(subset))


@settings(max_examples=100, deadline=None)
@given(cases)
def test_the_order_of_the_snapshot_does_not_matter(case: Case) -> None:
    gpus, residents, need = case
    assert plan(need, gpus, residents, POLICY, NOW) == plan(need, gpus[::-1], residents[::-1], POLICY, NOW)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 900)), min_size=40, max_size=60), st.integers(1, 4))
def test_in_a_large_fleet_nobody_is_evicted_who_could_stay(many: list[tuple[bool, int]], count: int) -> None:
    gpus = [gpu(index, 40960) for index in range(12)]
    residents = [
        resident(str(n), 8000, f"g{n % 12}", busy=busy, last_used=float(used)) for n, (busy, used) in enumerate(many)
    ]
    need = Need("new", 20000, count)
    answer = plan(need, gpus, residents, POLICY, NOW)
    assert isinstance(answer, Placement)
    assert fits(need, gpus, residents, set(answer.evict))
    assert not any(fits(need, gpus, residents, set(answer.evict) - {one}) for one in answer.evict)


def can_hold(case: Case, answer: Placement) -> bool:
    gpus, residents, need = case
    there = [g for g in gpus if not need.gpu_ids or g.gpu_id in need.gpu_ids]
    return fits(need, there, after(residents, answer), set())


@settings(max_examples=1000, deadline=None)
@given(sleepy_cases)
def test_a_placement_beside_sleepers_fits_and_takes_only_those_who_may_go(case: Case) -> None:
    gpus, residents, need = case
    answer = plan(need, gpus, residents, POLICY, NOW)
    if isinstance(answer, Placement):
        left = rooms(gpus, after(residents, answer), set())
        assert len(set(answer.gpu_ids)) == need.gpu_count
        assert all(left[gpu_id] >= need.mib for gpu_id in answer.gpu_ids)
        assert not need.gpu_ids or set(answer.gpu_ids) == set(need.gpu_ids)
        by_id = {r.instance_id: r for r in residents}
        assert not set(answer.evict) & set(answer.sleep)
        assert all(may_go(need, by_id[n]) or may_be_stopped_asleep(need, by_id[n]) for n in answer.evict)
        assert all(may_go(need, by_id[n]) and by_id[n].asleep_mib is not None for n in answer.sleep)


@settings(max_examples=1000, deadline=None)
@given(sleepy_cases)
def test_nobody_is_stopped_who_could_sleep(case: Case) -> None:
    gpus, residents, need = case
    answer = plan(need, gpus, residents, POLICY, NOW)
    if isinstance(answer, NoRoom):
        everybody = [r.instance_id for r in residents if may_go(need, r) or may_be_stopped_asleep(need, r)]
        assert not can_hold(case, Placement((), tuple(everybody)))
        return
    going = [r for r in residents if may_go(need, r)]
    could_sleep = tuple(r.instance_id for r in going if r.asleep_mib is not None)
    could_not = tuple(r.instance_id for r in going if r.asleep_mib is None)
    for one in residents:
        if one.instance_id in answer.evict and (one.asleep or one.asleep_mib is not None):
            assert not can_hold(case, Placement((), could_not, could_sleep)), "no sleeper had to be stopped"
            others = tuple(n for n in answer.evict if n != one.instance_id)
            asleep = answer.sleep if one.asleep else (*answer.sleep, one.instance_id)
            assert not can_hold(case, Placement((), others, asleep)), f"{one.instance_id} could sleep"


def test_who_may_sleep_sleeps_then_sleepers_go_and_then_those_who_serve() -> None:
    old = resident("old", 1000, asleep=True, last_used=1)
    newer = resident("newer", 1000, asleep=True, last_used=2)
    serving = resident("serving", 20000, asleep_mib=1000, last_used=3)
    everybody = [old, newer, serving]  # of 24064 MiB
    for mib, stopped, asleep in (
        (2064, (), ()),
        (21064, (), ("serving",)),
        (22064, ("old",), ("serving",)),
        (23064, ("old", "newer"), ("serving",)),
        (24064, ("old", "newer", "serving"), ()),
    ):
        assert plan(Need("m", mib), [gpu()], everybody, POLICY, NOW) == Placement(("g0",), stopped, asleep)
    awaited = replace(old, waited_for=True)
    answer = plan(Need("m", 22064), [gpu()], [awaited, newer, serving], POLICY, NOW)
    assert answer == Placement(("g0",), ("newer",), ("serving",)), "requests wait for the other"


def test_an_extra_instance_stops_no_sleeper() -> None:
    asleep = resident("asleep", 5000, asleep=True)
    assert isinstance(plan(Need("m", 20000, may_evict=False), [gpu()], [asleep], POLICY, NOW), NoRoom)


def test_instances_of_a_model_are_spread_over_the_gpus() -> None:
    beside = [resident("0", 4000, "g0", model="m"), resident("1", 1000, "g1")]
    assert plan(Need("m", 4000), [gpu(0), gpu(1)], beside, POLICY, NOW) == Placement(("g1",))


def test_a_gpu_where_nothing_leaves_comes_first_then_the_tightest() -> None:
    leaving = [resident("0", 20000, "g0", leaving=True)]
    assert plan(Need("m", 4000), [gpu(0), gpu(1)], leaving, POLICY, NOW) == Placement(("g1",))
    assert plan(Need("m", 4000), [gpu(0, 40960), gpu(1)], [], POLICY, NOW) == Placement(("g1",))
    assert plan(Need("m", 24000), [gpu(0)], leaving, POLICY, NOW) == Placement(("g0",))


def test_the_least_recently_used_goes() -> None:
    both = [resident("new", last_used=900), resident("old", last_used=100)]
    assert plan(Need("m", 12000), [gpu()], both, POLICY, NOW) == Placement(("g0",), ("old",))


@pytest.mark.parametrize(
    ("ready_s_ago", "use", "waited_s", "goes"),
    [
        (10, {"busy": True}, 1000, False),  # within its quantum, however long others wait
        (10, {"last_used": NOW - 1}, 0, False),
        (10, {}, 0, True),  # nobody uses it: at once
        (60, {"busy": True}, 0, True),  # its quantum is over
        (60, {"waited_for": True, "last_used": NOW - 9}, 119, False),  # it serves its queue
        (60, {"waited_for": True, "last_used": NOW - 9}, 120, True),  # but nobody else waits longer than that for it
    ],
)
def test_a_model_in_use_keeps_its_place_for_a_quantum(
    ready_s_ago: float, use: dict[str, object], waited_s: float, goes: bool
) -> None:
    one = replace(resident("0", 20000, ready_since=NOW - ready_s_ago), **use)  # type: ignore[arg-type]
    answer = plan(Need("m", 12000, waited_s=waited_s), [gpu()], [one], POLICY, NOW)
    if goes:
        assert answer == Placement(("g0",), ("0",))
    else:
        assert isinstance(answer, NoRoom)
        assert not answer.never
        assert "gpus.min_resident_s" in answer.reason


def test_without_a_quantum_it_is_plain_lru_but_nobody_goes_before_it_has_served() -> None:
    lru = replace(POLICY, min_resident_s=0)
    one = resident("0", 20000, ready_since=NOW - 5, last_used=NOW - 1, busy=True, waited_for=True)
    assert plan(Need("m", 12000), [gpu()], [one], lru, NOW) == Placement(("g0",), ("0",))
    just_ready = replace(one, last_used=NOW - 5, busy=False)
    assert isinstance(plan(Need("m", 12000, waited_s=1000), [gpu()], [just_ready], lru, NOW), NoRoom)


def test_a_discovery_run_and_an_extra_instance_leave_the_busy_alone() -> None:
    busy = [resident("0", 20000, busy=True)]
    for need, words in (
        (Need("m", 12000, may_drain_busy=False), "busy ones are not drained"),
        (Need("m", 12000, may_evict=False), "extra instances take free room only"),
    ):
        answer = plan(need, [gpu()], busy, POLICY, NOW)
        assert isinstance(answer, NoRoom)
        assert not answer.never
        assert words in answer.reason


def test_a_refusal_for_ever_tells_the_numbers() -> None:
    assert plan(Need("m", 30000), [gpu()], [resident("0")], POLICY, NOW) == NoRoom(
        True, "needs 30000 MiB on 1 GPU; the largest has 24064 MiB for models (24576 MiB, 512 MiB margin)"
    )
    pinned = plan(Need("m", 20000), [gpu(foreign_mib=300)], [resident("0", pinned=True)], POLICY, NOW)
    assert pinned == NoRoom(
        True,
        "needs 20000 MiB on 1 GPU; the largest has 13764 MiB for models "
        "(24576 MiB, 512 MiB margin, 300 MiB held by others, 10000 MiB pinned)",
    )
    two = plan(Need("m", 20000, 2), [gpu(0), gpu(1, problem="fell off the bus")], [], POLICY, NOW)
    assert two == NoRoom(True, "needs 2 GPUs; 1 can be used; GPU 1: fell off the bus")


def test_a_resident_on_two_gpus_makes_room_on_both() -> None:
    wide = [resident("wide", 20000, "g0 g1"), resident("left", 15000, "g2", last_used=1)]
    answer = plan(Need("m", 20000, 2), [gpu(0), gpu(1), gpu(2)], wide, POLICY, NOW)
    assert answer == Placement(("g0", "g1"), ("wide",))


def test_an_engine_is_not_spread_over_mig_devices() -> None:
    parts = [Gpu(f"MIG-{index}", 0, "MIG 1g", 24576, part=True) for index in range(2)]
    assert isinstance(plan(Need("a", 1000), parts, [], Policy(), NOW), Placement)
    refused = plan(Need("a", 1000, gpu_count=2), parts, [], Policy(), NOW)
    assert isinstance(refused, NoRoom)
    assert refused.never
    assert "MIG devices cannot be used together" in refused.reason


def test_a_gpu_where_nobody_starts_is_preferred_and_one_where_somebody_does_is_better_than_none() -> None:
    starting = [resident("0", 20000, "g0", evictable=False, changing=True)]
    assert plan(Need("m", 4000), [gpu(0), gpu(1)], starting, POLICY, NOW) == Placement(("g1",))
    assert plan(Need("m", 4000), [gpu(0)], starting, POLICY, NOW) == Placement(("g0",))


def test_a_start_that_nobody_waits_for_goes_before_anybody_who_has_served() -> None:
    residents = [
        resident("served", 20000, "g0", last_used=1.0),
        resident("starts", 20000, "g1", changing=True, last_used=0.0),
    ]
    gpus = [gpu(0, 24000), gpu(1, 24000)]
    assert plan(Need("m", 20000), gpus, residents, POLICY, NOW) == Placement(("g1",), evict=("starts",))
