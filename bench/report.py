# SPDX-License-Identifier: Apache-2.0
"""Tables for people, out of the samples."""

import statistics
from collections.abc import Sequence

from bench.measure import Measured, Results
from bench.rows import Row


def summary(samples: Sequence[dict[str, float]], metric: str) -> tuple[float, float, float] | None:
    """Least, median, greatest."""
    values = [sample[metric] for sample in samples if metric in sample]
    return (min(values), statistics.median(values), max(values)) if values else None


def quick_table(rows: Sequence[Row], results: Results) -> str:
    lines: list[tuple[str, ...]] = [
        ("work", "proxy", "us each", "(min-max)", "x nginx", "(min-max)", "core busy", "each/s", "p99 ms")
    ]
    for row in rows:
        for name, measured in results.rows[row.name].items():
            lines.append((row.name, name, *_quick_cells(measured)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*texts, *(f"{name}: {why}" for name, why in results.missing.items())])


def _quick_cells(measured: Measured) -> tuple[str, ...]:
    if measured.failed or not measured.samples:
        return (f"failed: {measured.failed}", "", "", "", "", "", "")
    cpu, ratio = summary(measured.samples, "cpu_us"), summary(measured.samples, "x_nginx")
    busy, rate = summary(measured.samples, "busy"), summary(measured.samples, "per_s")
    late = summary(measured.samples, "delay_p99_ms") or summary(measured.samples, "p99_ms")
    assert cpu and busy and rate and late
    return (
        f"{cpu[1]:.1f}",
        f"{cpu[0]:.1f}-{cpu[2]:.1f}",
        f"{ratio[1]:.2f}" if ratio else "-",
        f"{ratio[0]:.2f}-{ratio[2]:.2f}" if ratio else "-",
        f"{busy[1]:.0%}",
        f"{rate[1]:,.0f}",
        f"{late[1]:.2f}",
    )
