# SPDX-License-Identifier: Apache-2.0
"""The ruler's words: its table and counts, what it is compared with, and the clock by which it measures."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.checkouts import other_one
from bench.instructions import callgrind_count, perf_count
from bench.machine import CannotMeasure
from bench.paired import Verdict
from bench.processes import CpuClock, NotServing
from bench.ruler import ROWS, Measured, table

LIMITS = {"request": 1.03, "token": 1.02}


def measured(ratio: float, spread: float) -> Measured:
    return Measured(ROWS[0], [(50 * (ratio + spread * (number - 7) / 7), 50.0) for number in range(15)])


def test_a_row_says_ratio_interval_limit_and_verdict() -> None:
    lines = table([measured(1.0, 0.02), measured(1.1, 0.02), measured(1.0, 0.1)], LIMITS).splitlines()
    assert lines[1].split() == ["plain_1k", "50.0", "50.0", "1.000", "0.989", "-", "1.011", "1.03", "holds"]
    assert lines[2].endswith("1.03   dearer")
    assert lines[3].endswith("1.03   undecided: run more pairs")
    assert "15 pairs of fresh processes" in lines[5]
    assert "96.5% interval" in lines[6]


def test_a_row_has_the_limit_of_its_unit() -> None:
    assert {row.name: LIMITS[row.unit] for row in ROWS} == {"plain_1k": 1.03, "plain_64k": 1.03, "tokens": 1.02}
    assert measured(1.025, 0.0).verdict(1.03) is Verdict.HOLDS
    assert measured(1.025, 0.0).verdict(1.02) is Verdict.DEARER


def test_a_folder_is_compared_as_it_is(tmp_path: Path) -> None:
    assert other_one(str(tmp_path), print).python == tmp_path / ".venv/bin/python"


@pytest.mark.parametrize("unknown", ["no-such-revision", "--help", "HEAD^{tree}"])
def test_neither_a_folder_nor_a_revision(unknown: str) -> None:
    with pytest.raises(CannotMeasure, match="neither a folder nor a revision"):
        other_one(unknown, print)


def test_the_counters_words() -> None:
    assert perf_count("# started\n123456,,instructions:u,1000,100.00,,\n") == 123456
    assert callgrind_count("==7== Events    : Ir\n==7== Collected : 3508592164\n==7==\n") == 3508592164
    with pytest.raises(CannotMeasure, match="not counted"):
        perf_count("<not counted>,,instructions:u,0,100.00,,\n")
    with pytest.raises(CannotMeasure, match="cannot execute"):
        callgrind_count("valgrind: cannot execute\n")


def test_the_clock_counts_work_and_not_waiting() -> None:
    work = "import sys\nfor line in sys.stdin:\n    sum(range(int(line)))\n    print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def do(amount: int) -> float:
            process.stdin.write(b"%d\n" % amount)  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            process.stdout.readline()  # type: ignore[union-attr]
            return clock.lap()

        clock = CpuClock(process.pid)
        do(1)
        assert clock.lap() == pytest.approx(0, abs=0.001)
        assert do(2_000_000) > 20 * do(1)
        process.kill()
        process.wait()
        with pytest.raises(NotServing, match="ended while it was measured"):
            clock.lap()
