# SPDX-License-Identifier: Apache-2.0
"""What a run found: samples by row and target, kept as JSON; a later run of some targets goes into an earlier file."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Sample = dict[str, float]


@dataclass(slots=True)
class Measured:
    """Of one row and one target. `failed` says why there are no (more) samples."""

    samples: list[Sample] = field(default_factory=list)
    failed: str | None = None

    def spread(self, metric: str) -> "Spread | None":
        values = [sample[metric] for sample in self.samples if metric in sample]
        return Spread(min(values), statistics.median(values), max(values)) if values else None

    def median(self, metric: str) -> float | None:
        found = self.spread(metric)
        return found.median if found else None


@dataclass(frozen=True, slots=True)
class Spread:
    least: float
    median: float
    most: float


@dataclass(slots=True)
class Results:
    date: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # target -> why it was not measured
    rows: dict[str, dict[str, Measured]] = field(default_factory=dict)

    def of(self, row: str, target: str) -> Measured:
        return self.rows.get(row, {}).get(target, Measured())

    def take(self, newer: "Results", targets: Sequence[str] | None) -> None:
        """Puts a newer run's measurements (of these targets; None: all) in the place of this one's."""
        self.date, self.machine, self.rounds, self.seconds = newer.date, newer.machine, newer.rounds, newer.seconds
        for row, measured in newer.rows.items():
            chosen = {name: one for name, one in measured.items() if targets is None or name in targets}
            self.rows.setdefault(row, {}).update(chosen)
        for name in [*newer.versions, *newer.missing]:
            if targets is None or name in targets:
                self.missing.pop(name, None)
        self.versions |= {name: text for name, text in newer.versions.items() if targets is None or name in targets}
        self.missing |= {name: text for name, text in newer.missing.items() if targets is None or name in targets}


def add_ratios(samples: dict[str, Sample], yardstick: str) -> None:
    """Of one round: cost as a multiple of the yardstick's a moment before or after; delay beyond the direct way's."""
    unit = samples.get(yardstick, {}).get("cpu_us")
    direct = samples.get("direct", {}).get("delay_p99_ms")
    for sample in samples.values():
        if unit and "cpu_us" in sample:
            sample["ratio"] = sample["cpu_us"] / unit
        if direct is not None and "cpu_us" in sample:
            sample["added_p99_ms"] = sample["delay_p99_ms"] - direct


def save(results: Results, file: Path) -> None:
    """Numbers are rounded: more than five digits of them would be noise."""
    rounded = dataclasses.asdict(results)
    for row in rounded["rows"].values():
        for measured in row.values():
            measured["samples"] = [
                {name: float(f"{value:.5g}") for name, value in sample.items()} for sample in measured["samples"]
            ]
    made = file.with_suffix(".new")
    made.write_text(json.dumps(rounded, indent=1) + "\n")
    made.replace(file)


def read(file: Path) -> Results:
    found = json.loads(file.read_text())
    found["rows"] = {
        row: {name: Measured(**one) for name, one in measured.items()} for row, measured in found["rows"].items()
    }
    return Results(**found)
