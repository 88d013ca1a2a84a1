# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/strategies.md from the rows of a matrix, and what they say of the targets."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
CellKey = tuple[str, int, float]  # cache, instances, load
OURS, BASELINE = "prefix_aware", "least_connections"


class Matrix:
    """Rows of one trace, found by strategy and cell."""

    def __init__(self, title: str, rows: Sequence[Row]) -> None:
        self.title = title
        self._rows = {(row["strategy"], row["cache"], row["instances"], row["load"]): row for row in rows}
        self.strategies = list(dict.fromkeys(row["strategy"] for row in rows))
        self.caches = list(dict.fromkeys(row["cache"] for row in rows))
        self.fleets = sorted({row["instances"] for row in rows})
        self.loads = sorted({row["load"] for row in rows})
        self.blocks = {row["cache"]: row["cache_blocks"] for row in rows}
        self.requests = max(row["requests"] + row["refused"] for row in rows)

    def of(self, strategy: str, cache: str, instances: int, load: float) -> Row:
        return self._rows[strategy, cache, instances, load]

    @property
    def cells(self) -> list[CellKey]:
        return [(cache, fleet, load) for cache in self.caches for fleet in self.fleets for load in self.loads]


def report(matrix: Matrix, *, full: bool) -> str:
    parts = [f"### {matrix.title}", f"{matrix.requests:,} requests.", _against(matrix), _verdict(matrix)]
    if full:
        parts += [_times(matrix, cache) for cache in matrix.caches]
    return "\n\n".join(parts)


def _against(matrix: Matrix) -> str:
    """How many times better `prefix_aware` is: TTFT p50 / p99."""
    others = [name for name in (BASELINE, *_yardsticks(matrix)) if name in matrix.strategies]
    rows = []
    for cache in matrix.caches:
        for load in matrix.loads:
            cells = []
            for other in others:
                ratios = [_ratio(matrix, other, (cache, fleet, load)) for fleet in matrix.fleets]
                cells.append(" · ".join(f"{p50:.2f} / {p99:.2f}" for p50, p99 in ratios))
            rows.append([cache, f"{load:.0%}", *cells])
    fleets = ", ".join(map(str, matrix.fleets))
    head = f"`{OURS}` against the others, how many times shorter: TTFT p50 / p99 with {fleets} instances."
    return head + "\n\n" + _markdown(["cache", "load", *others], rows)


def _yardsticks(matrix: Matrix) -> list[str]:
    return [name for name in matrix.strategies if " " in name or name == "oracle"]


def _ratio(matrix: Matrix, other: str, cell: CellKey) -> tuple[float, float]:
    ours, theirs = matrix.of(OURS, *cell), matrix.of(other, *cell)
    return theirs["ttft_p50_s"] / ours["ttft_p50_s"], theirs["ttft_p99_s"] / ours["ttft_p99_s"]


def _verdict(matrix: Matrix) -> str:
    """The targets, and the cells that miss them."""
    loaded = [cell for cell in matrix.cells if cell[2] >= 0.7]
    p50, p99 = 0, 1
    rows = [
        _target(matrix, f"p99 1.3 x better than {BASELINE}, from 70%", BASELINE, p99, 1.3, loaded),
        _target(matrix, f"p50 1.5 x better than {BASELINE}", BASELINE, p50, 1.5, matrix.cells),
    ]
    for name in _yardsticks(matrix):
        least, wanted = (0.95, "within 5% of") if name == "oracle" else (0.995, "never worse than")
        rows += [
            _target(matrix, f"{word} {wanted} {name}", name, place, least, matrix.cells)
            for word, place in (("p50", p50), ("p99", p99))
        ]
    return _markdown(["target", "cells that reach it", "the others"], rows)


def _target(matrix: Matrix, title: str, other: str, place: int, least: float, cells: Sequence[CellKey]) -> list[str]:
    missed = [(cell, ratio) for cell in cells if (ratio := _ratio(matrix, other, cell)[place]) < least]
    told = "; ".join(f"{cache}, {fleet}, {load:.0%}: {ratio:.2f}" for (cache, fleet, load), ratio in missed)
    return [title, f"{len(cells) - len(missed)} of {len(cells)}", told]


def _times(matrix: Matrix, cache: str) -> str:
    columns = [(fleet, load) for fleet in matrix.fleets for load in matrix.loads]
    rows = [
        [name, *(_cell(matrix.of(name, cache, fleet, load)) for fleet, load in columns)] for name in matrix.strategies
    ]
    head = f"TTFT p50 / p99 in seconds, cache {cache} ({matrix.blocks[cache]:,} blocks an instance):"
    return head + "\n\n" + _markdown(["strategy", *(f"{fleet} at {load:.0%}" for fleet, load in columns)], rows)


def _cell(row: Row) -> str:
    return f"{_short(row['ttft_p50_s'])} / {_short(row['ttft_p99_s'])}"


def _short(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
