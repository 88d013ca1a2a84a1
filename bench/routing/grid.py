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
TIME_FOR_EACH = "time for each"
_LEAST_REQUESTS = 600
_SURE = 0.95
Interval = tuple[float, float, float]  # mean, and the ends
Compared = dict[str, dict[str, Interval]]  # other -> figure -> how many times worse ours is


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
            worst = max(low for _, low, _ in row["ratios"][yardstick(row["ratios"])].values())
            say(f"{number}: {cell}: {worst:.3f}")
            yield row


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []


def compare(cell: Cell, seeds: int) -> Compared:
    """On the same traffic, seed by seed; with 95 % intervals."""
    capacity = None if cell.clients else capacity_rps(cell)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, *OTHERS)}
    for seed in range(seeds):
        trace = make(cell.shape, cell.requests, seed, per_s=(cell.load or 1.0) * (capacity or 1.0))
        for name, those in runs.items():
            those.append(figures(cell, replay(trace, build(name), setting(cell, seed))))
    return {
        name: {
            figure: _interval([log(our[figure] / their[figure]) for our, their in zip(runs[OURS], theirs, strict=True)])
            for figure in theirs[0]
        }
        for name in OTHERS
        for theirs in (runs[name],)
    }


def yardstick(compared: Compared) -> str:
    """The better of the others on the whole, over all figures.

    Not the better in each figure: where these two differ, one has the better median and the other the better p99, and
    no strategy could be as good as both. What is worse than only one of them is listed, too.
    """
    return max(compared, key=lambda name: sum(log(mean) for mean, _, _ in compared[name].values()))


def over(figures_of: dict[str, Interval], most_worse: float) -> list[str]:
    """The figures that are surely worse."""
    return [figure for figure, (_, low, _) in figures_of.items() if low > 1 + most_worse]


def is_trade(figure: str, figures_of: dict[str, Interval], most_worse: float) -> bool:
    """A median that is worse while the 99th percentile is better by as much or more, and as many are answered."""
    of, _, rank = figure.rpartition(" ")
    if rank != "p50" or TIME_FOR_EACH in over(figures_of, most_worse):
        return False
    return figures_of[figure][0] * figures_of[f"{of} p99"][0] <= 1


def setting(cell: Cell, seed: int, clients: int | None = None) -> Setting:
    standard, speed = Timing(), cell.engine_speed
    timing = Timing(**{one.name: getattr(standard, one.name) / speed for one in fields(Timing)})
    engine = EngineOptions(CACHE_BLOCKS, BLOCK_TOKENS, timing=timing)
    return Setting(cell.instances, engine, seed=seed, clients=clients or cell.clients, streamed=cell.streamed)


def figures(cell: Cell, result: Replay) -> dict[str, float]:
    """Less is better."""
    of = summary("", result)
    found = {"total p50": of.e2e_p50_s, "total p99": of.e2e_p99_s, TIME_FOR_EACH: 1 / of.throughput_rps}
    return {**found, "TTFT p50": of.ttft_p50_s, "TTFT p99": of.ttft_p99_s} if cell.streamed else found


def capacity_rps(cell: Cell) -> float:
    """What least_connections completes with enough clients, without the beginning and the end."""
    trace: Trace = make(cell.shape, _LEAST_REQUESTS, seed=0)
    result = replay(trace, build(OTHERS[0]), setting(cell, 0, clients=40 * cell.instances))
    ends = sorted(one.arrival_s + one.total_s for one in result.served)
    first, last = len(ends) // 5, len(ends) * 4 // 5
    return (last - first) / (ends[last] - ends[first])


def _interval(logs: Sequence[float]) -> Interval:
    """Of the geometric mean, by Student's t (in the expansion by Cornish and Fisher)."""
    mean, free = fmean(logs), len(logs) - 1
    if not free:
        return exp(mean), exp(mean), exp(mean)
    z = NormalDist().inv_cdf((1 + _SURE) / 2)
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    half = t * stdev(logs) / sqrt(len(logs))
    return exp(mean), exp(mean - half), exp(mean + half)


def report(rows: Sequence[dict[str, Any]], most_worse: float) -> str:
    """Markdown: a line a figure, and by name all cells that are surely worse in one."""
    limit = f"{1 + most_worse:g}"
    judged = [(row["ratios"][yardstick(row["ratios"])], row) for row in rows]
    lines = [
        f"{len(rows)} cells with {min(row['seeds'] for row in rows)} seeds each; how many times the better on the "
        f"whole of {' and '.join(f'`{name}`' for name in OTHERS)}, less is better:",
        "",
        f"| figure | best cell | median | worst cell | over {limit}, surely | of them trades | cells |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    failed, trades, single = [], [], []
    for name in dict.fromkeys(name for of, _ in judged for name in of):
        means = sorted(of[name][0] for of, _ in judged if name in of)
        worse = [(of, row) for of, row in judged if name in over(of, most_worse)]
        traded = [(of, row) for of, row in worse if is_trade(name, of, most_worse)]
        failed += [_told(of, row, name) for of, row in worse if not is_trade(name, of, most_worse)]
        trades += [_told(of, row, name) for of, row in traded]
        best, median, worst = means[0], means[len(means) // 2], means[-1]
        lines.append(
            f"| {name} | {best:.2f} | {median:.2f} | {worst:.2f} | {len(worse)} | {len(traded)} | {len(means)} |"
        )
    for of, row in judged:
        for other, theirs in row["ratios"].items():
            only = [name for name in over(theirs, most_worse) if name not in over(of, most_worse)]
            single += [_told(theirs, row, name, f" of {other}") for name in only]
    for title, cells in (
        (f"Worse than {limit} times that, surely", failed),
        (f"Worse in a median, surely, and better by as much or more in the 99th percentile ({len(trades)})", trades),
        (f"Worse, surely, than the other of the two, which is the worse on the whole ({len(single)})", single),
    ):
        if cells:
            lines += ["", f"{title}:", "", *(f"- {text}" for text in sorted(cells))]
    return "\n".join(lines)


def _told(figures_of: dict[str, Interval], row: dict[str, Any], figure: str, than: str = "") -> str:
    """With both percentiles, so that one can be held against the other."""
    of, _, rank = figure.rpartition(" ")
    text = f"{Cell(**row['cell'])}: {figure} {figures_of[figure][0]:.2f}{than}"
    other = {"p50": f"{of} p99", "p99": f"{of} p50"}.get(rank)
    return f"{text} ({other.rpartition(' ')[2]} {figures_of[other][0]:.2f})" if other else text
