# SPDX-License-Identifier: Apache-2.0
"""Who listens on a port of this machine: a key sent to a port proves nothing about that, the kernel's tables do."""

import contextlib
import os
from collections.abc import Iterator

_LISTENS = "0A"
_HERE = frozenset(
    {
        "0100007F",  # 127.0.0.1
        "00000000",  # any
        "00000000000000000000000000000000",
        "0000000000000000FFFF00000100007F",  # 127.0.0.1 as IPv6 sees it
    }
)


class EngineListens:
    """A `Guard`: whether all that listens on a port of 127.0.0.1 belongs to the processes of one session."""

    def __init__(self, session: int, port: int) -> None:
        self._session = session
        self._port = f"{port:04X}"
        self._known: frozenset[str] = frozenset()  # sockets that are the engine's

    def holds(self) -> bool:
        listening = frozenset(self._listening())
        if not listening <= self._known:
            self._known = listening & frozenset(_sockets_of(self._session))
        return bool(listening) and listening <= self._known

    def _listening(self) -> Iterator[str]:
        """The inodes of the sockets."""
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            with contextlib.suppress(FileNotFoundError), open(table, encoding="ascii") as lines:
                next(lines)
                for line in lines:
                    fields = line.split()
                    if fields[3] != _LISTENS:
                        break  # those that listen come first
                    address, _, port = fields[1].partition(":")
                    if port == self._port and address in _HERE:
                        yield fields[9]


def _sockets_of(session: int) -> Iterator[str]:
    for pid in pids_of_session(session):
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{number}")
                    if target.startswith("socket:["):
                        yield target[8:-1]


def pids_of_session(session: int) -> frozenset[int]:
    """An engine leads a session of its own, and its workers are in it."""
    pids = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(pid)) == session:
                pids.add(int(pid))
    return frozenset(pids)
