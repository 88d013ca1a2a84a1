# SPDX-License-Identifier: Apache-2.0
"""What is skipped on a developer's machine fails in continuous integration, but for what may be skipped there, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest


@pytest.fixture
def lab():
    pytest.skip("no lab")


def test_of_the_lab(lab): ...


@pytest.mark.skipif(True, reason="no curl")
def test_of_curl(): ...


@pytest.mark.may_skip
@pytest.mark.skipif(True, reason="no vLLM")
def test_of_vllm(): ...


@pytest.mark.xfail
def test_to_come(): assert False
"""


@pytest.mark.parametrize(("ci", "closing"), [("true", "1 skipped, 1 xfailed, 2 errors"), ("", "3 skipped, 1 xfailed")])
def test_skips(ci: str, closing: str, tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = may_skip\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.never_skipped", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert closing in done.stdout.splitlines()[-1]
    assert ("with CI=true it has to. Skipped: no lab" in done.stdout) == bool(ci)
