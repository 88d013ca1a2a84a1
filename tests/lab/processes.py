# SPDX-License-Identifier: Apache-2.0
"""Finds and ends the lab's own processes: those with the lab's directory in their command line, and no others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.lab.place import Place

_POLL_S = 0.02


def belongs_to(place: Place, pid: int) -> bool:
    """False as well for a process that has ended but was not collected yet: its command line is empty."""
    return f"{place.directory}/" in _command_line(pid)


def of_lab(place: Place) -> list[int]:
    return [pid for pid in _all_pids() if pid != os.getpid() and _is_daemon(_command_line(pid), place)]


def containers_of_lab(place: Place) -> Iterator[int]:
    """The first processes of containers whose dockerd is gone: children of shims that still hold them."""
    for pid in of_lab(place):
        if "containerd-shim" in _command_line(pid):
            with suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                yield from map(int, children.split())


def end(place: Place, pid: int, *, limit_s: float) -> None:
    """SIGTERM, and SIGKILL when the time is up; leaves alone what is not the lab's."""
    if not belongs_to(place, pid):
        return
    kill(pid, signal.SIGTERM)
    if not wait_until(lambda: not belongs_to(place, pid), limit_s):
        kill(pid, signal.SIGKILL)
        wait_until(lambda: not belongs_to(place, pid), limit_s)


def kill(pid: int, with_signal: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, with_signal)


def pid_in(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _is_daemon(command_line: str, place: Place) -> bool:
    """A developer's editor or `tail` that names a file of the lab is not the lab's."""
    program = Path(command_line.split("\0", 1)[0]).name
    return f"{place.directory}/" in command_line and program.startswith(("dockerd", "containerd", "docker-proxy"))


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
