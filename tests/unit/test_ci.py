# SPDX-License-Identifier: Apache-2.0
"""Continuous integration plays every target whatever becomes of the others, and ends with one line and one status."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / ".ci"
MAKE = """#!/bin/sh
echo "$*" >>made
case "$1" in
    check) echo "1 passed in 0.50s" ;;
    test) echo "FAILED a_test"; echo "=== {test} in 300.25s (0:05:00) ==="; exit {status} ;;
    setup) ;;
    *) echo "==== 2 passed, 1 warning in 1.25s ====" ;;
esac
"""


def run_with(folder: Path, test: str, status: int) -> subprocess.CompletedProcess[str]:
    """Where `make test` closes with that and has that status."""
    shutil.copytree(CI, folder / ".ci")
    commands = folder / "commands"
    commands.mkdir()
    for name, script in (("make", MAKE.format(test=test, status=status)), ("gcc", "#!/bin/sh"), ("curl", "#!/bin/sh")):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(folder / ".ci/run")], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("test", "status", "closing"),
    [
        ("20 passed, 3 skipped", 0, "25 passed, 3 skipped, 2 warnings in 303.25s"),
        ("1 failed, 19 passed", 2, "1 failed, 24 passed, 2 warnings in 303.25s"),
        ("1 passed, 2 errors", 2, "6 passed, 2 warnings, 2 errors in 303.25s"),
    ],
)
def test_all_targets_are_played_and_added_up(tmp_path: Path, test: str, status: int, closing: str) -> None:
    done = run_with(tmp_path, test, status)
    assert bool(done.returncode) == bool(status)
    assert (tmp_path / "made").read_text().splitlines() == ["setup", "check", "test", "long", "fuzz FUZZ_EXAMPLES=2000"]
    assert done.stdout.splitlines()[-1].strip("= ") == closing


def test_a_target_that_gets_nowhere_is_an_error(tmp_path: Path) -> None:
    done = run_with(tmp_path, "nothing", 1)
    assert done.returncode
    assert "make test: ended before its tests did" in done.stdout
    assert done.stdout.splitlines()[-1].strip("= ") == "5 passed, 2 warnings, 1 error in 3.00s"
