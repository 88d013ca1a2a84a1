# SPDX-License-Identifier: Apache-2.0
"""Is `prefix_aware` anywhere worse than strategies that know of no prefixes? Many sizes of one shape of traffic."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from math import exp, log, sqrt
from pathlib import Path
from random import Random
from statistics import NormalDist, fmean, stdev
from typing import Any

from bench.routing.matrix import build
from bench.routing.shared import BLOCK_TOKENS, Shape, make
from vllm_gateway.replay.driver import Replay, Setting, replay
from vllm_gateway.replay.engine import EngineOptions
from vllm_gateway.replay.report import summary
from vllm_gateway.replay.timing import Timing
from vllm_gateway.replay.trace import Trace

FILE = Path(__file__).with_name("grid.json")
OURS, OTHERS = "prefix_aware", ("least_connections", "round_robin")
CACHE_BLOCKS = 3200  # 410,000 tokens
_LEAST_REQUESTS = 600
_SURE = 0.95


@dataclass(frozen=True, slots=True)
class Cell:
    """`clients`: a closed loop of so many; None: an open one, at `load` of what least_connections completes."""

    clients: int | None
    load: float | None
    prefix_tokens: int
    groups: int
    reply_tokens: int
    instances: int
    engine_speed: float
    streamed: bool

    @property
    def shape(self) -> Shape:
        return Shape(self.prefix_tokens, self.groups, self.reply_tokens)

    @property
    def requests(self) -> int:
        """Enough that each prefix is used often on each instance, and each client asks several times."""
        return max(_LEAST_REQUESTS, 8 * (self.clients or 0), 20 * self.groups * self.instances)

    def __str__(self) -> str:
        traffic = f"{self.clients} at a time" if self.clients else f"open at {self.load:.0%}"
        shared = {0: "by none", 1: "by all"}.get(self.groups, f"by {self.groups} groups")
        return (
            f"{traffic}, {self.prefix_tokens} tokens shared {shared}, replies of {self.reply_tokens}, "
            f"{self.instances} instances at {self.engine_speed:g} x{'' if self.streamed else ', not streamed'}"
        )


@dataclass(frozen=True, slots=True)
class Grid:
    cells: list[Cell]
    seeds: int
    most_worse: float


def read_grid(path: Path = FILE) -> Grid:
    """The cells are in the order in which they were drawn: the first of them are a fair sample, too."""
    given = json.loads(path.read_text(encoding="utf-8"))
    sizes = given["sizes"]
    names = [one.name for one in fields(Cell)]
    every = [dict(zip(names, values, strict=True)) for values in product(*(sizes[name] for name in names))]
    closed_once = [one for one in every if one["clients"] is None or one["load"] == sizes["load"][0]]
    cells = [Cell(**{**one, "load": None if one["clients"] else one["load"]}) for one in closed_once]
    distinct = list(dict.fromkeys(cells))
    return Grid(Random(given["draw"]).sample(distinct, given["cells"]), given["seeds"], given["most_worse"])


def run(cells: Iterable[Cell], seeds: int, out: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One row a cell, each also added to `out` as a line of JSON. What is there already is not run again."""
    known = {json.dumps(row["cell"]): row for row in read_rows(out) if row["seeds"] >= seeds}
    with out.open("a", encoding="utf-8") as lines:
        for number, cell in enumerate(cells, start=1):
            row = known.get(json.dumps(asdict(cell)))
            if row is None:
                row = {"cell": asdict(cell), "seeds": seeds, "ratios": compare(cell, seeds)}
                lines.write(json.dumps(row) + "\n")
                lines.flush()
            worst = max(low for _, low, _ in row["ratios"].values())
            say(f"{number}: {cell}: {worst:.3f}")
            yield row


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []


def compare(cell: Cell, seeds: int) -> dict[str, tuple[float, float, float]]:
    """Figure -> how many times worse than the better of the others: mean, and the ends of its 95 % interval."""
    capacity = None if cell.clients else capacity_rps(cell)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, *OTHERS)}
    for seed in range(seeds):
        trace = make(cell.shape, cell.requests, seed, per_s=(cell.load or 1.0) * (capacity or 1.0))
        for name, those in runs.items():
            those.append(figures(cell, replay(trace, build(name), setting(cell, seed))))
    compared = {}
    for figure in runs[OURS][0]:
        against = [
            [log(ours[figure] / theirs[figure]) for ours, theirs in zip(runs[OURS], runs[name], strict=True)]
            for name in OTHERS
        ]
        compared[figure] = max(map(_interval, against), key=lambda one: one[1])
    return compared


def setting(cell: Cell, seed: int, clients: int | None = None) -> Setting:
    standard, speed = Timing(), cell.engine_speed
    timing = Timing(**{one.name: getattr(standard, one.name) / speed for one in fields(Timing)})
    engine = EngineOptions(CACHE_BLOCKS, BLOCK_TOKENS, timing=timing)
    return Setting(cell.instances, engine, seed=seed, clients=clients or cell.clients, streamed=cell.streamed)


def figures(cell: Cell, result: Replay) -> dict[str, float]:
    """Less is better."""
    of = summary("", result)
    found = {"total p50": of.e2e_p50_s, "total p99": of.e2e_p99_s, "time for each": 1 / of.throughput_rps}
    return {**found, "TTFT p50": of.ttft_p50_s, "TTFT p99": of.ttft_p99_s} if cell.streamed else found


def capacity_rps(cell: Cell) -> float:
    """What least_connections completes with enough clients, without the beginning and the end."""
    trace: Trace = make(cell.shape, _LEAST_REQUESTS, seed=0)
    result = replay(trace, build(OTHERS[0]), setting(cell, 0, clients=40 * cell.instances))
    ends = sorted(one.arrival_s + one.total_s for one in result.served)
    first, last = len(ends) // 5, len(ends) * 4 // 5
    return (last - first) / (ends[last] - ends[first])


def _interval(logs: Sequence[float]) -> tuple[float, float, float]:
    """Of the geometric mean, by Student's t (in the expansion by Cornish and Fisher)."""
    mean, free = fmean(logs), len(logs) - 1
    if not free:
        return exp(mean), exp(mean), exp(mean)
    z = NormalDist().inv_cdf((1 + _SURE) / 2)
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    half = t * stdev(logs) / sqrt(len(logs))
    return exp(mean), exp(mean - half), exp(mean + half)


def report(rows: Sequence[dict[str, Any]], most_worse: float) -> str:
    """Markdown: a line a figure, and the cells that fail."""
    names = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    lines = [
        f"{len(rows)} cells with {min(row['seeds'] for row in rows)} seeds each; how many times the better of "
        f"{' and '.join(f'`{name}`' for name in OTHERS)}, less is better:",
        "",
        f"| figure | best cell | median | worst cell | over {1 + most_worse:g}, surely | cells |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    failed: list[tuple[float, str]] = []
    for name in names:
        of = sorted((tuple(row["ratios"][name]), str(Cell(**row["cell"]))) for row in rows if name in row["ratios"])
        over = [(mean, f"{cell}: {name} {mean:.2f}") for (mean, low, _), cell in of if low > 1 + most_worse]
        failed += over
        best, median, worst = (of[at][0][0] for at in (0, len(of) // 2, -1))
        lines.append(f"| {name} | {best:.2f} | {median:.2f} | {worst:.2f} | {len(over)} | {len(of)} |")
    if failed:
        lines += ["", "Worse than that, surely:", ""]
        lines += [f"- {text}" for _, text in sorted(failed, reverse=True)]
    return "\n".join(lines)
