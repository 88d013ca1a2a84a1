# SPDX-License-Identifier: Apache-2.0
"""The ruler: is this gateway dearer than another version of it? Pairs of fresh processes, measured beside each other.

What a process costs depends on where its memory happens to lie, for as long as it lives; so each pair is started anew,
and gives one ratio for each row. What the machine is at changes within milliseconds; so both of a pair have the same
load at once on the same core, where the kernel lets them take turns, and whatever slows one down slows the other too.
"""

import contextlib
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from bench.load import CountedRequests, Load
from bench.measure import Bench
from bench.paired import Interval, Verdict, judge, median_interval
from bench.processes import CpuClock
from bench.rows import Proxy
from bench.targets import Target

REQUEST_LIMIT, TOKEN_LIMIT = 1.03, 1.02
_CONNECTIONS = 32
_AT_ONCE = 256  # requests to each before their clocks are read
_WARM_UP = 512
_LONGER_FOR_TOKENS = 2  # their pace leaves the core idle for most of the time
Costs = tuple[float, float]  # microseconds of CPU time for each unit: this gateway, the other


class Ruled(Protocol):
    """A kind of work, measured on both of a pair in the same seconds."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def costs(self, pair: Sequence[Proxy], load: Load, seconds: float, chance: random.Random) -> Costs: ...


@dataclass(frozen=True, slots=True)
class Requests:
    name: str
    body_bytes: int
    unit: str = "request"

    def costs(self, pair: Sequence[Proxy], load: Load, seconds: float, chance: random.Random) -> Costs:
        with contextlib.ExitStack() as stack:
            clocks = [_clock(proxy) for proxy in pair]
            loads = [
                stack.enter_context(load.counted(proxy.address, body_bytes=self.body_bytes, connections=_CONNECTIONS))
                for proxy in pair
            ]
            order = chance.sample((0, 1), 2)
            _send(loads, order, _WARM_UP)
            for clock in clocks:
                clock.lap()
            took, sent = [0.0, 0.0], 0
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                _send(loads, order, _AT_ONCE)
                for side in order:
                    took[side] += clocks[side].lap()
                sent += _AT_ONCE
                order.reverse()
        return 1e6 * took[0] / sent, 1e6 * took[1] / sent


def _send(loads: Sequence[CountedRequests], order: Sequence[int], requests: int) -> None:
    for side in order:
        loads[side].ask(requests)
    for side in order:
        loads[side].wait()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Streams at an engine's pace, as many on one as on the other: few enough for a token to be a read of its own."""

    name: str
    streams: int
    rate: int
    unit: str = "token"
    open_s: float = 0.3

    def costs(self, pair: Sequence[Proxy], load: Load, seconds: float, chance: random.Random) -> Costs:
        def cost(proxy: Proxy) -> float:
            clock = _clock(proxy)
            with load.streams(
                proxy.address,
                streams=self.streams,
                rate=self.rate,
                open_s=self.open_s,
                seconds=_LONGER_FOR_TOKENS * seconds,
            ) as streams:
                clock.lap()
                began = time.monotonic()
                streams.wait()
                cpu_s, wall_s = clock.lap(), time.monotonic() - began
                result = streams.result()
            # As shares of a second: the pace is constant, and this thread may have been late to look at the clocks.
            return 1e6 * (cpu_s / wall_s) / (result.tokens / result.seconds)

        with ThreadPoolExecutor(2) as both:
            first, second = chance.sample((0, 1), 2)
            running = {side: both.submit(cost, pair[side]) for side in (first, second)}
            return running[0].result(), running[1].result()


ROWS: tuple[Ruled, ...] = (
    Requests("plain_1k", 1 << 10),
    Requests("plain_64k", 64 << 10),
    Tokens("tokens", 64, 50),
)


def _clock(proxy: Proxy) -> CpuClock:
    assert proxy.pid is not None  # only the backend itself has none
    return CpuClock(proxy.pid)


@dataclass(frozen=True, slots=True)
class Measured:
    row: Ruled
    costs: list[Costs] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [this / other for this, other in self.costs]

    @property
    def interval(self) -> Interval:
        return median_interval(self.ratios)

    def verdict(self, limit: float) -> Verdict:
        return judge(self.interval, limit)


def compare(
    bench: Bench, rows: Sequence[Ruled], this: Target, other: Target, pairs: int, chance: random.Random
) -> list[Measured]:
    """Raises LoadFailed, NotServing or Missing: a comparison that is not whole is none."""
    measured = [Measured(row) for row in rows]
    for number in range(pairs):
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            first, second = chance.sample((this, other), 2)
            served = {target.name: stack.enter_context(bench.serving(target)) for target in (first, second)}
            pair = [served[this.name], served[other.name]]
            for one in chance.sample(measured, len(measured)):
                one.costs.append(one.row.costs(pair, bench.load, bench.seconds, chance))
        ratios = ", ".join(f"{one.row.name} {one.ratios[-1]:.3f}" for one in measured)
        bench.say(f"pair {number + 1} of {pairs}, {time.monotonic() - began:.0f} s: {ratios}")
    return measured


def table(measured: Sequence[Measured], limits: Mapping[str, float]) -> str:
    lines = [("work", "this, us", "other, us", "ratio", "interval", "limit", "verdict")]
    for one in measured:
        interval, limit = one.interval, limits[one.row.unit]
        this, other = (f"{statistics.median(costs[side] for costs in one.costs):.1f}" for side in (0, 1))
        reach = f"{interval.low:.3f} - {interval.high:.3f}"
        verdict = one.verdict(limit).value
        lines.append((one.row.name, this, other, f"{interval.median:.3f}", reach, f"{limit:g}", verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if measured:
        pairs, confidence = len(measured[0].costs), measured[0].interval.confidence
        texts.append(
            f"\n{pairs} pairs of fresh processes; CPU time per request or token; the median of the pairs' ratios"
        )
        texts.append(f"with its {confidence:.1%} interval (sign test)")
    return "\n".join(texts)
