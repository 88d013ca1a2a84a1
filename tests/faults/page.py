# SPDX-License-Identifier: Apache-2.0
"""The matrix as a table of docs/reliability.md, between two markers."""

from pathlib import Path

from tests.faults.faults import Side
from tests.faults.matrix import FAULTS
from tests.faults.outcomes import CannotHappen, Promise
from tests.faults.phases import Phase

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- fault matrix: begin -->\n", "<!-- fault matrix: end -->\n"


def table() -> str:
    phases = " | ".join(phase.value for phase in Phase)
    lines = [f"| | {phases} |", "|---" * (len(Phase) + 1) + "|"]
    for side in Side:
        lines.append(f"| **{side.value}**" + " |" * (len(Phase) + 1))
        for fault in (fault for fault in FAULTS if fault.side is side):
            cells = " | ".join(_words(fault.promises[phase]) for phase in Phase)
            lines.append(f"| {fault.name} | {cells} |")
    return "\n".join(lines) + "\n"


def _words(promise: Promise) -> str:
    if isinstance(promise, CannotHappen):
        return f"*cannot happen: {promise.why}*"
    return promise.words


def with_table(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE.name} has no markers"
    return before + BEGIN + table() + end + after


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
