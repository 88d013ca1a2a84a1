# SPDX-License-Identifier: Apache-2.0
"""A configuration file of the release before is one of this release, but for what the changelog calls breaking."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.upgrade.releases import NoHistoryError, export
from tests.waiting import LIMIT_S


def check(file: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "vllm_gateway.cli", "check", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=os.environ)
    return done.returncode, done.stdout + done.stderr


def test_what_the_release_before_shipped_is_understood(previous: Path, tmp_path: Path) -> None:
    assert check(previous / "config" / "demo.yaml")[0] == 0
    status, said = check(previous / "config" / "gateway.yaml")
    assert status != 0, "it is open to all who reach the machine"
    assert "server.open" in said or "open: true" in said
    opened = yaml.safe_load((previous / "config" / "gateway.yaml").read_text())
    opened["server"]["open"] = True
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(opened))
    assert check(tmp_path / "gateway.yaml")[0] == 0


def test_a_release_that_is_not_in_the_history_is_said_not_to_be(tmp_path: Path) -> None:
    with pytest.raises(NoHistoryError, match="not in the history here: clone with all of it"):
        export("v0.0.0-never", tmp_path)
