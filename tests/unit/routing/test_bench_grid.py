# SPDX-License-Identifier: Apache-2.0
"""The grid: its file, its statistics, its report, and a small slice of it with what it is there to find."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.routing import grid
from bench.routing.__main__ import GRID_BEGIN, GRID_END, main
from bench.routing.shared import BLOCK_TOKENS, Shape, make

SHARED_BY_ALL = grid.Cell(60, None, 1000, 1, 40, 3, 1.0, streamed=True)
SLICE = {
    "one system prompt": SHARED_BY_ALL,
    "not streamed": replace(SHARED_BY_ALL, streamed=False),
    "few clients, a long prefix, slow engines": replace(
        SHARED_BY_ALL, clients=5, prefix_tokens=32_000, instances=8, engine_speed=0.3
    ),
    "open, fast engines": replace(SHARED_BY_ALL, clients=None, load=0.6, prefix_tokens=4096, engine_speed=3.0),
}

COMPARED: grid.Compared = {
    "least_connections": {"total p50": (1.2, 1.1, 1.3), "total p99": (0.5, 0.4, 0.6)},
    "round_robin": {"total p50": (0.4, 0.3, 0.5), "total p99": (1.3, 1.2, 1.4)},
}


@pytest.mark.parametrize("name", SLICE)
def test_nowhere_surely_worse_than_strategies_that_know_of_no_prefixes(name: str) -> None:
    most_worse = grid.read_grid().most_worse
    compared = grid.compare(SLICE[name], seeds=3)
    against = compared[grid.yardstick(compared)]
    assert {figure: against[figure] for figure in grid.over(against, most_worse)} == {}


def test_the_file_draws_distinct_cells_of_all_sizes() -> None:
    drawn = grid.read_grid()
    sizes = json.loads(grid.FILE.read_text(encoding="utf-8"))["sizes"]
    assert drawn.seeds >= 20
    assert len(set(drawn.cells)) == len(drawn.cells)
    for name, values in sizes.items():
        assert {getattr(cell, name) for cell in drawn.cells} | {None} == {*values, None}
    assert all((cell.clients is None) != (cell.load is None) for cell in drawn.cells)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[grid.Cell] = []

    def compare(cell: grid.Cell, seeds: int) -> grid.Compared:
        ran.append(cell)
        return COMPARED

    monkeypatch.setattr(grid, "compare", compare)
    page, out = tmp_path / "page.md", tmp_path / "new" / "rows.jsonl"
    page.write_text(f"before\n{GRID_BEGIN}\nold\n{GRID_END}\nafter\n", encoding="utf-8")
    assert main(["grid", "--out", str(out), "--cells", "2"]) == 0
    assert main(["grid", "--out", str(out), "--cells", "3", "--write", str(page)]) == 0
    assert ran == grid.read_grid().cells[:3]
    text = page.read_text(encoding="utf-8")
    assert "| total p50 | 1.20 | 1.20 | 1.20 | 3 | 3 | 3 |" in text
    assert "| total p99 | 0.50 | 0.50 | 0.50 | 0 | 0 | 3 |" in text
    assert text.count(": total p50 1.20 (p99 0.50)") == 3 and "old" not in text and text.endswith("after\n")
    assert text.count(": total p99 1.30 of round_robin (p50 0.40)") == 3
    assert [row["cell"] for row in grid.read_rows(out)] == [asdict(cell) for cell in ran]


def test_the_yardstick_is_the_better_on_the_whole_and_only_a_median_is_traded() -> None:
    assert grid.yardstick(COMPARED) == "least_connections"
    assert grid.over(COMPARED["least_connections"], 0.05) == ["total p50"]
    worse = (1.2, 1.1, 1.3)
    for than, traded in (((0.8, 0.7, 0.9), True), ((0.9, 0.8, 1.0), False)):
        assert grid.is_trade("total p50", {"total p50": worse, "total p99": than}, 0.05) is traded
        assert not grid.is_trade("total p99", {"total p99": worse, "total p50": than}, 0.05)
    assert not grid.is_trade(
        "total p50", {"total p50": worse, "total p99": (0.1,) * 3, grid.TIME_FOR_EACH: worse}, 0.05
    )


def test_the_interval_is_students() -> None:
    mean, low, high = grid._interval([0.1 * n for n in range(20)])
    assert (mean, low, high) == pytest.approx((2.586, 1.961, 3.410), rel=0.002)


@pytest.mark.parametrize("groups", [0, 1, 10])
def test_prompts_begin_alike_within_their_group(groups: int) -> None:
    trace = make(Shape(1000, groups, 50), 300, seed=2)
    shared = 1000 // BLOCK_TOKENS
    assert len({one.blocks[:shared] for one in trace.requests}) == (groups or 300)
    assert len({block for one in trace.requests for block in one.blocks[shared:]}) == sum(
        len(one.blocks) - shared for one in trace.requests
    )
    assert all(one.input_tokens > 1000 and 25 <= one.output_tokens <= 75 for one in trace.requests)
