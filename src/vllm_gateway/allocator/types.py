# SPDX-License-Identifier: Apache-2.0
"""The words of the memory books: GPUs, residents, needs, and the two answers a plan can have."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as read. `foreign_mib`: memory held there by others than our instances, the driver included."""

    gpu_id: str  # the UUID; what a device request names
    index: int
    name: str
    total_mib: int
    used_mib: int = 0
    foreign_mib: int = 0
    problem: str | None = None  # why nothing may be placed here
    shared: bool = False  # its memory is the machine's: what sleeps there gives nothing back
    part: bool = False  # a MIG device: CUDA can use it together with no other


@dataclass(frozen=True, slots=True)
class Resident:
    """An instance that holds a reservation. `leaving`: it is being drained or stopped, its memory will come back."""

    instance_id: str
    model: str
    gpu_ids: tuple[str, ...]
    mib: int  # on each of its GPUs
    busy: bool = False
    waited_for: bool = False  # requests of its model wait for a place
    pinned: bool = False
    evictable: bool = True  # ready or asleep, or on its way to it while nobody waits for that
    changing: bool = False  # on its way: nothing else can start on its GPUs meanwhile
    asleep: bool = False
    asleep_mib: int | None = None  # what it would keep asleep; None: evicted, it is stopped
    leaving: bool = False
    ready_since: float = 0.0
    last_used: float = 0.0


@dataclass(frozen=True, slots=True)
class Need:
    """What one new instance, or one that wakes, asks for: `mib` on each of `gpu_count` GPUs."""

    model: str
    mib: int
    gpu_count: int = 1
    may_evict: bool = True  # the model's first instance; extra ones take free room only
    may_drain_busy: bool = True  # False in a discovery run
    waited_s: float = 0.0  # how long requests have waited for it
    gpu_ids: tuple[str, ...] = ()  # no others: there it sleeps


@dataclass(frozen=True, slots=True)
class Policy:
    margin_mib: int = 512  # left free on every GPU
    min_resident_s: float = 60.0  # how long a resident in use keeps its place
    max_swap_wait_s: float = (
        120.0  # beyond that it keeps it while its queue is served, until another has waited this long
    )
    idle_s: float = 2.0  # a resident unused for this long is not in use
    host_mib: int = 0  # of the machine's memory, for what sleeps


@dataclass(frozen=True, slots=True)
class Placement:
    gpu_ids: tuple[str, ...]
    evict: tuple[str, ...] = ()  # instance ids, in order: those that are stopped
    sleep: tuple[str, ...] = ()  # and those that are put to sleep


@dataclass(frozen=True, slots=True)
class NoRoom:
    """`never`: it would not fit if every unpinned resident left. `reason` carries the numbers."""

    never: bool
    reason: str
