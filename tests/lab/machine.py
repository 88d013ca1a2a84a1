# SPDX-License-Identifier: Apache-2.0
"""What the lab asks of the machine itself: control groups, a network bridge, and mounts that it takes down again."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.errors import LabUnavailableError
from tests.lab.place import Place
from tests.lab.shell import run, succeeds

_CGROUPS = Path("/sys/fs/cgroup")
_BRIDGE_ADDRESS = "02:00:00:00:00:01"
_NETWORK_ID = re.compile(rb"[0-9a-f]{64}")


def require_root() -> None:
    if os.geteuid() != 0:
        raise LabUnavailableError("the lab starts a Docker engine of its own, and only root can")


@contextmanager
def locked() -> Iterator[None]:
    """What is the machine's and not one lab's is changed by one process at a time."""
    with Path(tempfile.gettempdir(), "vllm-gateway-lab-machine.lock").open("a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def mount_cgroups() -> None:
    """A machine without systemd may have none mounted."""
    filesystem = run("stat", "--file-system", "--format=%T", _CGROUPS).strip()
    if filesystem == "cgroup2fs" or (_CGROUPS / "devices").is_mount():
        return
    controllers = _version_1_controllers()
    if "devices" not in controllers:
        run("mount", "-t", "cgroup2", "cgroup2", _CGROUPS)
        return
    if not _CGROUPS.is_mount():
        run("mount", "-t", "tmpfs", "-o", "mode=755", "cgroup", _CGROUPS)
    for controller in controllers:
        target = _CGROUPS / controller
        target.mkdir(exist_ok=True)
        if not target.is_mount():
            succeeds("mount", "-t", "cgroup", "-o", controller, "cgroup", target)  # some may be off in this kernel


def add_bridge(place: Place) -> None:
    if not _interface_exists(place.bridge):
        run("ip", "link", "add", place.bridge, "type", "bridge")
        run("ip", "address", "add", f"{_free_network(place)}.1/24", "dev", place.bridge)
    # One without an address of its own takes that of a container, and another when that container ends: what the other
    # containers send would go astray until they ask again. Docker gives its own bridges one, too.
    run("ip", "link", "set", place.bridge, "address", _BRIDGE_ADDRESS, "up")


def remove_bridges(place: Place) -> None:
    """The lab's bridge, and those of networks that a killed dockerd left behind: its database names them."""
    database = place.data_root / "network" / "files" / "local-kv.db"
    network_ids = set(_NETWORK_ID.findall(database.read_bytes())) if database.exists() else set()
    names = [place.bridge, *(f"br-{network_id[:12].decode()}" for network_id in network_ids)]
    for name in names:
        if _interface_exists(name):
            run("ip", "link", "delete", name)


def unmount_below(place: Place) -> None:
    """The innermost first."""
    for target in sorted(mounts_below(place), reverse=True):
        succeeds("umount", "--lazy", target)


def mounts_below(place: Place) -> list[str]:
    targets = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [target for target in targets if target.startswith(f"{place.directory}/")]


def _version_1_controllers() -> list[str]:
    lines = Path("/proc/cgroups").read_text().splitlines()[1:]
    return [name for name, _hierarchy, _groups, enabled in map(str.split, lines) if enabled == "1"]


def _interface_exists(name: str) -> bool:
    return any(name == other for _, other in socket.if_nameindex())


def _free_network(place: Place) -> str:
    """The first three numbers of an address range that nothing on this machine uses."""
    in_use = run("ip", "-4", "address") + run("ip", "-4", "route", "show", "table", "all")
    first = zlib.crc32(place.bridge.encode())
    for offset in range(256):
        network = f"10.213.{(first + offset) % 256}"
        if f" {network}." not in in_use:
            return network
    raise LabUnavailableError("no free address range between 10.213.0.0 and 10.213.255.0")
