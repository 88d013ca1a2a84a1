# SPDX-License-Identifier: Apache-2.0
"""The benchmark's words: tables, goals, the regression check, the profile's list."""

from pathlib import Path

import pytest

from bench import report
from bench.goals import GOALS
from bench.profile import top
from bench.regression import problems
from bench.results import Measured, Results
from bench.rows import PLAIN


def results(ratio: float) -> Results:
    found = Results(date="2026-01-01", machine={"processor": "a | b", "python": "3.11"}, rounds=5, seconds=3.0)
    ours = Measured([{"cpu_us": 20 * ratio, "ratio": ratio, "busy": 1.0, "per_s": 9000.0, "p99_ms": 4.0}])
    found.rows = {"plain_1k": {"gateway": ours, "litellm": Measured([], "answered 'HTTP/1.1 500'")}}
    found.missing = {"envoy": "not installed: make bench-peers"}
    found.versions = {"gateway": "0.1"}
    return found


@pytest.mark.parametrize(("ratio", "holds"), [(3.0, True), (3.01, False)])
def test_a_goal_is_held_or_not(ratio: float, holds: bool) -> None:
    assert GOALS[0].judge(results(ratio)).holds is holds


def test_what_was_not_measured_is_not_held() -> None:
    assert {goal.judge(Results()).holds for goal in GOALS} == {None}


def test_a_failure_and_a_missing_proxy_are_said() -> None:
    page = report.markdown(results(2.0))
    assert "| gateway | 40.0 | 2.00 |" in page
    assert "litellm failed in plain_1k: answered 'HTTP/1.1 500'." in page
    assert "| envoy | not measured: not installed: make bench-peers |" in page


def test_the_tables_go_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_into(page, "new")
    assert page.read_text() == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="lacks"):
        report.write_into(page, "new")


@pytest.mark.parametrize(("ratio", "count"), [(2.0, 0), (2.4, 0), (2.41, 1)])
def test_dearer_than_recorded(ratio: float, count: int) -> None:
    assert len(problems(PLAIN[:1], results(ratio), {"plain_1k": 2.0})) == count


def test_a_row_that_could_not_be_measured_is_a_problem() -> None:
    assert problems(PLAIN[:1], Results(), {"plain_1k": 2.0}) == ["plain_1k: not measured"]


def test_the_profile_s_list_joins_lines_of_a_function() -> None:
    stacks = ["run (a.py:1);read (b.py:5) 6", "run (a.py:1);read (b.py:7) 2", "run (a.py:3) 2"]
    lines = top(stacks).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["80.0%", "80.0%", "read", "(b.py)"],
        ["20.0%", "100.0%", "run", "(a.py)"],
    ]
