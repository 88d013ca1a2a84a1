# SPDX-License-Identifier: Apache-2.0
"""The gateway's image: what it installs is pinned, and it is root only where nobody else may use Docker's socket."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "deploy/image"
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


def pinned(lock: str) -> dict[str, str]:
    """Name and version of each package; every one has hashes."""
    text = (IMAGE / lock).read_text("utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert all(any(part.startswith("--hash=sha256:") for part in line) for line in lines)
    return dict(line[0].split("==") for line in lines)


def test_what_the_gateway_needs_is_pinned_with_hashes() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for lock, needed in (
        ("requirements.lock", project["project"]["dependencies"]),
        ("build.lock", project["build-system"]["requires"]),
    ):
        versions = pinned(lock)
        for requirement in map(Requirement, needed):
            assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_the_image_begins_with_a_version() -> None:
    assert re.search(r"^ARG PYTHON=python:\d+\.\d+\.\d+-", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)


def started(folder: Path, group: int, mode: int) -> str:
    """As whom the gateway runs, where Docker's socket belongs to root and `group`."""
    program = folder / "vllm-gateway"
    program.write_text('#!/bin/sh\necho "$(id -u) $(id -G) $*"\n')
    program.chmod(0o755)
    (state := folder / "state").mkdir()
    path = folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        os.chown(path, 0, group)
        path.chmod(mode)
        for parent in (folder, *folder.parents[:-2]):  # pytest's are root's alone
            parent.chmod(parent.stat().st_mode | 0o011)
        found = subprocess.run(
            [IMAGE / "start", "serve", "--port", "1"],
            env={
                "PATH": f"{folder}:{os.environ['PATH']}",
                "DOCKER_SOCKET": str(path),
                "VLLM_GATEWAY_STATE_DIR": str(state),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    return found.stdout.strip()


@as_root
@pytest.mark.parametrize(
    ("group", "mode", "runs"),
    [
        (1234, 0o660, "10001 10001 1234 serve --port 1"),
        (1234, 0o600, "0 0 serve --port 1"),
        (0, 0o660, "0 0 serve --port 1"),
    ],
)
def test_it_is_root_only_where_it_must(group: int, mode: int, runs: str, tmp_path: Path) -> None:
    assert started(tmp_path, group, mode) == runs
