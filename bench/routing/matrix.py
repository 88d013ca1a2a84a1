# SPDX-License-Identifier: Apache-2.0
"""Every strategy and yardstick x instances x load x cache, over one trace; as JSON rows."""

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import vllm_gateway.strategies
from bench.routing.yardsticks import DynamoCost, Oracle, SglangCacheAware
from vllm_gateway.replay.driver import Build, Setting, replay
from vllm_gateway.replay.engine import EngineOptions
from vllm_gateway.replay.report import summary
from vllm_gateway.replay.trace import Trace
from vllm_gateway.scheduling import make_strategy

LOADS = (0.5, 0.7, 0.9, 1.2)
INSTANCES = (2, 4, 8)
CACHES = {"plentiful": 100_000, "medium": 3_000, "scarce": 800}
BASELINE = "least_connections"  # what the load is measured by
WITHOUT_TRACES = {"chain", "session_affinity"}  # put together by the operator; needs sessions, which traces do not name
YARDSTICKS: dict[str, Build] = {
    "sglang cache_aware 0.3": lambda world: SglangCacheAware(0.3, 64, 1.5),  # the router's present defaults
    "sglang cache_aware 0.5": lambda world: SglangCacheAware(0.5, 32, 1.0001),  # its first ones
    "dynamo cost": DynamoCost,
    "oracle": Oracle,
}
_AT_ONCE = 1000.0  # so fast that the engines never wait


def names() -> list[str]:
    shipped = [module.name for module in pkgutil.iter_modules(vllm_gateway.strategies.__path__)]
    return [*sorted(set(shipped) - WITHOUT_TRACES), *YARDSTICKS]


@dataclass(frozen=True, slots=True)
class Cell:
    cache: str
    cache_blocks: int
    instances: int
    load: float


def build(name: str) -> Build:
    return YARDSTICKS.get(name) or (lambda world: make_strategy(name, clock=world.clock, random=world.random))


def setting(trace: Trace, cell: Cell, speed: float) -> Setting:
    engine = EngineOptions(cache_blocks=cell.cache_blocks, block_tokens=trace.block_tokens)
    return Setting(cell.instances, engine, speed=speed)


def capacity_rps(trace: Trace, cell: Cell) -> float:
    """Requests a second that the baseline completes where all come at once, without the beginning and the end."""
    result = replay(trace, build(BASELINE), setting(trace, cell, _AT_ONCE))
    ends = sorted(one.arrival_s + one.total_s for one in result.served if one.instance is not None)
    first, last = len(ends) // 10, len(ends) * 9 // 10
    return (last - first) / (ends[last] - ends[first])


_trace: Trace  # in each process of the pool: it is large, and does not change


def _begin(trace: Trace) -> None:
    global _trace  # noqa: PLW0603 - how a pool hands over what is large
    _trace = trace


def _capacity(cell: Cell) -> float:
    return capacity_rps(_trace, cell)


def _row(task: tuple[Cell, str, float]) -> dict[str, Any]:
    cell, name, capacity = task
    rate = len(_trace.requests) / max(1e-9, _trace.requests[-1].arrival_s)
    result = replay(_trace, build(name), setting(_trace, cell, cell.load * capacity / rate))
    return {**asdict(cell), **asdict(summary(name, result))}


def run(
    trace: Trace,
    *,
    strategies: Sequence[str],
    caches: dict[str, int],
    instances: Sequence[int],
    loads: Sequence[float],
    processes: int,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=(trace,)) as pool:
        fleets = [Cell(cache, blocks, count, 1.0) for cache, blocks in caches.items() for count in instances]
        capacities = dict(zip(fleets, pool.map(_capacity, fleets), strict=True))
        tasks = [
            (Cell(fleet.cache, fleet.cache_blocks, fleet.instances, load), name, capacity)
            for fleet, capacity in capacities.items()
            for load in loads
            for name in strategies
        ]
        for done, row in enumerate(pool.map(_row, tasks, chunksize=4), start=1):
            if done % 60 == 0 or done == len(tasks):
                say(f"{done} of {len(tasks)}")
            yield row
