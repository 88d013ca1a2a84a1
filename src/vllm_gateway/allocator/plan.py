# SPDX-License-Identifier: Apache-2.0
"""Answers one question: where does a new instance go, and who makes way for it? A pure function of a snapshot.

Free room is taken before anybody is evicted. An eviction takes the residents that are missed least: the idle before
the busy, as few as suffice, the least recently used. A resident in use keeps its place for a quantum
(`Policy.min_resident_s`), so that two models which do not fit together are not swapped at every request. Either the
whole plan fits or nobody is evicted.

Of those who make way, whoever may sleep does. If what sleepers keep is still too much, they are stopped, the least
recently used first; and only if that is not enough, those who could sleep.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations

from vllm_gateway.allocator.types import Gpu, Need, NoRoom, Placement, Policy, Resident

MAX_EXACT_CANDIDATES = 12  # 4096 subsets
MAX_EXACT_SUBSETS = 1 << 14  # looked at in one plan; beyond it the greedy search answers
MAX_COMBINATIONS = 256  # of GPUs that are looked at one by one

_Cost = tuple[tuple[int, int], tuple[float, ...], tuple[str, ...]]


def plan(
    need: Need, gpus: Sequence[Gpu], residents: Sequence[Resident], policy: Policy, now: float
) -> Placement | NoRoom:
    """Where `need` goes and who is evicted for it, in order; or why there is no room, now or ever.

    What is `leaving` counts as gone: the caller launches only once that memory is physically back.
    """
    assert need.mib > 0, need
    assert need.gpu_count > 0, need
    gpus = sorted(gpus, key=lambda gpu: gpu.index)
    usable = [gpu for gpu in gpus if _may_be_used(gpu, need)]
    books = _Books(need, usable, residents, policy, now)
    refusal = _never(books, gpus)
    if refusal is not None:
        return refusal
    chosen = _choose(books, evicted=())
    if chosen is not None:
        return Placement(chosen)
    return _make_room(books) or NoRoom(never=False, reason=_reason_for_now(books, bool(_candidates(books))))


def _may_be_used(gpu: Gpu, need: Need) -> bool:
    here = not need.gpu_ids or gpu.gpu_id in need.gpu_ids
    return here and gpu.problem is None and not (gpu.part and need.gpu_count > 1)


@dataclass(frozen=True, slots=True)
class _Books:
    """The snapshot, with the sums that every step needs."""

    need: Need
    gpus: Sequence[Gpu]  # those that can be used
    residents: Sequence[Resident]
    policy: Policy
    now: float

    def capacity(self, gpu: Gpu) -> int:
        return gpu.total_mib - self.policy.margin_mib - gpu.foreign_mib

    def room(self, gpu: Gpu, gone: Callable[[Resident], bool]) -> int:
        """What is left for a new instance once those who are leaving or `gone` have given their memory back."""
        return self.capacity(gpu) - sum(
            resident.mib
            for resident in self.residents
            if gpu.gpu_id in resident.gpu_ids and not resident.leaving and not gone(resident)
        )

    def without(self, gone: Collection[Resident]) -> "_Books":
        names = {one.instance_id for one in gone}
        return replace(self, residents=[one for one in self.residents if one.instance_id not in names])

    def after(self, stopped: Collection[Resident], asleep: Collection[Resident]) -> "_Books":
        names = {one.instance_id for one in asleep}
        kept = self.without(stopped).residents
        slept = [replace(one, mib=_asleep_mib(one)) if one.instance_id in names else one for one in kept]
        return replace(self, residents=slept)

    def free(self, gpu: Gpu) -> int:
        return self.room(gpu, lambda _: False)

    def keeps_its_place(self, resident: Resident) -> bool:
        """In use, and either within its quantum or still at work on its queue while nobody else waits too long.

        The quantum holds however long others have waited: a model that takes longer to load than they may wait would
        otherwise be evicted as soon as it is ready, and nobody would be served.
        """
        if resident.asleep:
            return False
        if resident.waited_for and resident.last_used <= resident.ready_since:
            return True  # just ready: those who waited for it come first, even without a quantum
        in_use = resident.busy or resident.waited_for or self.now - resident.last_used < self.policy.idle_s
        if not in_use or not self.policy.min_resident_s:
            return False
        if self.now - resident.ready_since < self.policy.min_resident_s:
            return True
        return resident.waited_for and self.need.waited_s < self.policy.max_swap_wait_s

    def eviction_order(self, resident: Resident) -> tuple[bool, float, str]:
        return resident.busy, resident.last_used, resident.instance_id

    def cost(self, evicted: Iterable[Resident]) -> _Cost:
        """What an eviction costs: the number of busy ones, then that of idle ones, then how recently they were used.

        A proper subset always costs less, so the cheapest set that suffices has nobody in it who could have stayed.
        """
        members = list(evicted)
        busy = sum(member.busy for member in members)
        recent_first = sorted((member.last_used for member in members), reverse=True)
        ids = sorted(member.instance_id for member in members)
        return (busy, len(members) - busy), tuple(recent_first), tuple(ids)


def _make_room(books: _Books) -> Placement | None:
    """Who sleeps and who is stopped; None if nothing that may be done suffices."""
    sleepers = _sleepers(books)
    light = _beside_their_sleep(books)
    for stopped in range(len(sleepers) + 1):
        gone = sleepers[:stopped]
        if (evicted := _evictions(light.without(gone))) is not None:
            return _placement(books, gone, evicted)
    evicted = _evictions(books.without(sleepers))
    return None if evicted is None else _placement(books, sleepers, evicted)


def _evictions(books: _Books) -> Sequence[Resident] | None:
    """None of those who are awake, or the cheapest set of them; None if all do not suffice."""
    return () if _choose(books, ()) is not None else _cheapest_eviction(books, _candidates(books))


def _beside_their_sleep(books: _Books) -> _Books:
    """With what the evictable would keep asleep as a resident of its own, which nobody evicts."""
    residents: list[Resident] = []
    for one in books.residents:
        kept_mib = one.asleep_mib if one.evictable and not one.leaving else None
        if kept_mib is None:
            residents.append(one)
        else:
            residents.append(replace(one, mib=one.mib - kept_mib))
            residents.append(Resident(f"{one.instance_id} asleep", "", one.gpu_ids, kept_mib, evictable=False))
    return replace(books, residents=residents)


def _placement(books: _Books, sleepers: Sequence[Resident], evicted: Sequence[Resident]) -> Placement:
    """Once `sleepers` and `evicted` make the room: of those to be stopped, as many as can stay asleep do.

    The most recently used are spared first.
    """
    names = {one.instance_id for one in evicted}
    awake = sorted((one for one in books.residents if one.instance_id in names), key=books.eviction_order)
    stopped = [*sleepers, *awake]
    asleep: list[Resident] = []
    for one in reversed(stopped.copy()):
        may_rest = one.asleep or one.asleep_mib is not None
        if may_rest and _choose(books.after([other for other in stopped if other is not one], [*asleep, one]), ()):
            stopped.remove(one)
            asleep.insert(0, one)
    chosen = _choose(books.after(stopped, asleep), ())
    assert chosen is not None, "an eviction was planned that does not make room"
    return Placement(
        chosen,
        tuple(one.instance_id for one in stopped),
        tuple(one.instance_id for one in asleep if not one.asleep),
    )


def _never(books: _Books, all_gpus: Sequence[Gpu]) -> NoRoom | None:
    """The refusal of what would not fit if all left who can: instances of the model itself, and all unpinned ones."""
    need, problems = books.need, [gpu for gpu in all_gpus if gpu.problem is not None]
    if need.gpu_count > len(books.gpus):
        reason = f"needs {_gpus(need.gpu_count)}; {len(books.gpus)} can be used"
        if need.gpu_count > 1 and any(gpu.part for gpu in all_gpus):
            reason += "; MIG devices cannot be used together"
        if problems:
            reason += "; " + ", ".join(f"GPU {gpu.index}: {gpu.problem}" for gpu in problems)
        return NoRoom(never=True, reason=reason)

    def at_best(gpu: Gpu) -> int:
        return books.room(gpu, lambda resident: not resident.pinned or resident.model == need.model)

    if sum(at_best(gpu) >= need.mib for gpu in books.gpus) >= need.gpu_count:
        return None
    largest = sorted(books.gpus, key=at_best, reverse=True)[need.gpu_count - 1]  # the one that is too small
    parts = [f"{largest.total_mib} MiB", f"{books.policy.margin_mib} MiB margin"]
    if largest.foreign_mib:
        parts.append(f"{largest.foreign_mib} MiB held by others")
    if pinned := books.capacity(largest) - at_best(largest):
        parts.append(f"{pinned} MiB pinned")
    which = "the largest has" if need.gpu_count == 1 else f"the {need.gpu_count}. largest has"
    room = f"{max(0, at_best(largest))} MiB for models ({parts[0]}, {', '.join(parts[1:])})"
    return NoRoom(never=True, reason=f"needs {need.mib} MiB on {_gpus(need.gpu_count)}; {which} {room}")


def _choose(books: _Books, evicted: Collection[Resident]) -> tuple[str, ...] | None:
    """The best GPUs with room once `evicted` are gone: model spread, none on its way, tightest fit, lowest index."""
    names = {resident.instance_id for resident in evicted}

    def order(gpu: Gpu) -> tuple[int, bool, int, int]:
        here = [resident for resident in books.residents if gpu.gpu_id in resident.gpu_ids]
        siblings = sum(resident.model == books.need.model and not resident.leaving for resident in here)
        return siblings, any(resident.leaving or resident.changing for resident in here), rooms[gpu.gpu_id], gpu.index

    rooms = {gpu.gpu_id: books.room(gpu, lambda resident: resident.instance_id in names) for gpu in books.gpus}
    fitting = sorted((gpu for gpu in books.gpus if rooms[gpu.gpu_id] >= books.need.mib), key=order)
    if len(fitting) < books.need.gpu_count:
        return None
    return tuple(gpu.gpu_id for gpu in sorted(fitting[: books.need.gpu_count], key=lambda gpu: gpu.index))


def _asleep_mib(one: Resident) -> int:
    return one.mib if one.asleep or one.asleep_mib is None else one.asleep_mib


def _sleepers(books: _Books) -> list[Resident]:
    """Who sleeps and may be stopped for this need, in the order in which they go: last those who are waited for."""
    if not books.need.may_evict:
        return []
    usable = {gpu.gpu_id for gpu in books.gpus}
    those = [
        one
        for one in books.residents
        if one.asleep and one.evictable and not one.leaving and not one.pinned and not usable.isdisjoint(one.gpu_ids)
    ]
    return sorted(those, key=lambda one: (one.waited_for, one.last_used, one.instance_id))


def _candidates(books: _Books) -> list[Resident]:
    """Who is awake and may be evicted for this need at all, in the order in which they go."""
    if not books.need.may_evict:
        return []
    usable = {gpu.gpu_id for gpu in books.gpus}
    return sorted(
        (
            resident
            for resident in books.residents
            if resident.evictable
            and not resident.asleep
            and not resident.leaving
            and not resident.pinned
            and resident.model != books.need.model
            and (books.need.may_drain_busy or not resident.busy)
            and not books.keeps_its_place(resident)
            and not usable.isdisjoint(resident.gpu_ids)
        ),
        key=books.eviction_order,
    )


def _cheapest_eviction(books: _Books, candidates: Sequence[Resident]) -> Sequence[Resident] | None:
    """The cheapest set that makes room: exact for up to 12 candidates, near it for more; None if all do not suffice.

    Beyond 12, the GPU combinations are looked at one by one, since only residents there matter.
    """
    missing = {gpu.gpu_id: books.need.mib - books.free(gpu) for gpu in books.gpus}
    count = books.need.gpu_count
    if len(candidates) <= MAX_EXACT_CANDIDATES:
        return _exact(books, candidates, missing, count)
    if math.comb(len(missing), count) > MAX_COMBINATIONS:
        return _greedy(candidates, missing, count)
    found: list[Sequence[Resident]] = []
    budget = MAX_EXACT_SUBSETS
    for combination in combinations(missing, count):
        part = {gpu_id: missing[gpu_id] for gpu_id in combination}
        short = {gpu_id for gpu_id, mib in part.items() if mib > 0}
        relevant = [resident for resident in candidates if not short.isdisjoint(resident.gpu_ids)]
        budget -= 1 << len(relevant)
        exact = len(relevant) <= MAX_EXACT_CANDIDATES and budget >= 0
        answer = _exact(books, relevant, part, count) if exact else _greedy(relevant, part, count)
        if answer is not None:
            found.append(answer)
    return min(found, key=books.cost, default=None)


def _exact(
    books: _Books, candidates: Sequence[Resident], missing: Mapping[str, int], count: int
) -> Sequence[Resident] | None:
    """The cheapest of all subsets that suffice."""
    if not _suffices(candidates, missing, count):
        return None
    best, best_cost = candidates, books.cost(candidates)
    for subset in chain.from_iterable(combinations(candidates, size) for size in range(1, len(candidates))):
        if _suffices(subset, missing, count) and (cost := books.cost(subset)) < best_cost:
            best, best_cost = subset, cost
    return best


def _greedy(candidates: Sequence[Resident], missing: Mapping[str, int], count: int) -> Sequence[Resident] | None:
    """`candidates` in order until they suffice, then, from the last one back, without those who can stay after all."""
    size = next((n for n in range(1, len(candidates) + 1) if _suffices(candidates[:n], missing, count)), None)
    if size is None:
        return None
    kept = list(candidates[:size])
    for resident in reversed(candidates[:size]):
        without = [other for other in kept if other is not resident]
        if _suffices(without, missing, count):
            kept = without
    return kept


def _suffices(evicted: Iterable[Resident], missing: Mapping[str, int], count: int) -> bool:
    """Whether `evicted` give back what is `missing` on at least `count` GPUs."""
    left = dict(missing)
    for resident in evicted:
        for gpu_id in resident.gpu_ids:
            if gpu_id in left:
                left[gpu_id] -= resident.mib
    return sum(mib <= 0 for mib in left.values()) >= count


def _reason_for_now(books: _Books, had_candidates: bool) -> str:
    need = books.need
    free = max(0, sorted((books.free(gpu) for gpu in books.gpus), reverse=True)[need.gpu_count - 1])
    where = "there is" if need.gpu_count == 1 else f"on {_gpus(need.gpu_count)} there is"
    if not need.may_evict:
        why = "extra instances take free room only"
    elif any(map(books.keeps_its_place, books.residents)):
        why = "models in use keep their place for a while (gpus.min_resident_s)"
    elif not need.may_drain_busy:
        why = "idle instances alone do not make the room, and busy ones are not drained for this start"
    elif had_candidates:
        why = "those that may be evicted now do not make the room"
    else:
        why = "nothing may be evicted now"
    return f"needs {need.mib} MiB on {_gpus(need.gpu_count)}; {where} at most {free} MiB free; {why}"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
