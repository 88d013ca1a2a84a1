# SPDX-License-Identifier: Apache-2.0
"""Installs what the lab and other tests need from the system's packages, and only what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.errors import LabUnavailableError
from tests.lab.shell import SYSTEM_PATH, run

_PACKAGES_OF_COMMAND = {
    "dockerd": ["docker.io"],
    "iptables": ["iptables"],
    "ip": ["iproute2"],
    "gcc": ["gcc", "libc6-dev"],
    "nsenter": ["util-linux"],
    "setsid": ["util-linux"],
}
PROXIES = {"nginx": ["nginx"], "caddy": ["caddy"]}
_POLICY = Path("/usr/sbin/policy-rc.d")
_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")


def install_missing() -> None:
    commands = dict(_PACKAGES_OF_COMMAND)
    if _APPARMOR.exists() and _APPARMOR.read_text().startswith("Y"):
        commands["apparmor_parser"] = ["apparmor"]  # without it dockerd cannot load the profile of its containers
    install(commands)


def install(commands: Mapping[str, Sequence[str]]) -> None:
    """`commands`, and the packages of each. Raises LabUnavailableError."""
    missing = [command for command in commands if shutil.which(command, path=SYSTEM_PATH) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise LabUnavailableError(f"install {', '.join(missing)}: this machine has no apt-get to do it with")
    packages = sorted({package for command in missing for package in commands[command]})
    with _no_service_starts():
        apt_get("update", "-q")
        apt_get("install", "-y", "-q", "--no-install-recommends", *packages)


def apt_get(*arguments: str, directory: Path | None = None) -> None:
    """Waits for another apt-get rather than failing beside it."""
    run(
        *("apt-get", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3", *arguments),
        environment={"DEBIAN_FRONTEND": "noninteractive"},
        directory=directory,
    )


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian's packages ask this script whether they may start their daemon: the machine's own Docker stays off."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()
