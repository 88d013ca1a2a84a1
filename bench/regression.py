# SPDX-License-Identifier: Apache-2.0
"""Has a request become dearer? Compares the ratio to nginx of a run with the recorded one."""

import json
from collections.abc import Sequence

from bench.machine import HERE
from bench.results import Results
from bench.rows import Row

RECORD = HERE / "recorded.json"
ALLOWED = 1.2  # times the recorded ratio


def record(rows: Sequence[Row], results: Results) -> None:
    ratios = {row.name: results.of(row.name, "gateway").median("ratio") for row in rows}
    there = {name: round(ratio, 2) for name, ratio in ratios.items() if ratio is not None}
    RECORD.write_text(json.dumps({**recorded(), **there}, indent=1) + "\n")


def recorded() -> dict[str, float]:
    found: dict[str, float] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return found


def problems(rows: Sequence[Row], results: Results, known: dict[str, float]) -> list[str]:
    """Empty: nothing became dearer. A row that could not be measured is a problem too."""
    found = []
    for row in rows:
        ratio, before = results.of(row.name, "gateway").median("ratio"), known.get(row.name)
        if before is None:
            continue
        if ratio is None:
            found.append(f"{row.name}: not measured")
        elif ratio > before * ALLOWED:
            found.append(f"{row.name}: {ratio:.2f} x nginx, recorded {before:.2f} x, allowed {before * ALLOWED:.2f} x")
    return found
