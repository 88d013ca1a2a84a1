# SPDX-License-Identifier: Apache-2.0
"""Runs the system's commands for the lab: a failure becomes a reason with the command's own last lines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.lab.errors import LabUnavailableError

SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
"""Daemons and network tools live in sbin, which a user's PATH often lacks."""


def run(*command: str | Path, environment: Mapping[str, str] | None = None, directory: Path | None = None) -> str:
    """What the command prints; raises LabUnavailableError when it fails."""
    result = _run(command, environment or {}, directory)
    if result.returncode != 0:
        last_lines = "\n".join(result.stdout.strip().splitlines()[-5:])
        raise LabUnavailableError(f"`{' '.join(map(str, command))}` failed ({result.returncode}): {last_lines}")
    return result.stdout


def succeeds(*command: str | Path) -> bool:
    return _run(command, {}, None).returncode == 0


def _run(
    command: tuple[str | Path, ...], environment: Mapping[str, str], directory: Path | None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "PATH": SYSTEM_PATH, "LC_ALL": "C", **environment},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
