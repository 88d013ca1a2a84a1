# SPDX-License-Identifier: Apache-2.0
"""Every process of an engine, wherever it has gone: workers may lead sessions of their own, and lose their parents.

Each has a mark in its environment that says whose it is, down to the gateway that started the engine; so it is known
after that gateway's end, too. One that has lost the mark is known by where it came from, if it was seen in time. All
calls block; callers run them in a thread.
"""

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

VARIABLE = "ENGINE_OF_GATEWAY"
_PAUSE_S = 0.02
_TEXT = re.compile(r"(\d+-\d+-\d+) (\d+) (\S+) (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mark:
    """`owner` is the gateway: the namespace of its pid, the pid, and when it began."""

    owner: str
    number: int  # of the engine, among the owner's
    name: str
    model: str

    def __str__(self) -> str:
        return f"{self.owner} {self.number} {self.name} {self.model}"

    @classmethod
    def read(cls, text: str) -> "Mark | None":
        words = _TEXT.fullmatch(text)
        return cls(words[1], int(words[2]), words[3], words[4]) if words else None


@dataclass(frozen=True, slots=True)
class Left:
    """A process that does not end."""

    pid: int
    name: str
    memory_mib: int

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name}, {self.memory_mib} MiB of the machine's memory)"


@dataclass(frozen=True, slots=True)
class _Known:
    began: int
    mark: Mark | None


class Descendants:
    """Reads of each process once, when it is first seen."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._lock = Lock()

    def claim(self, pid: int, mark: Mark) -> None:
        """An engine has been started: what it starts is its own."""
        with self._lock, suppress(OSError):
            self._known[pid] = _Known(_stat(pid)[1], mark)

    def look(self) -> Mapping[Mark, frozenset[int]]:
        """Who there is now."""
        with self._lock:
            before, self._known = self._known, {}
            for pid in sorted(_pids()):  # parents before their children, as a rule
                with suppress(OSError):
                    self._known[pid] = before.get(pid) or self._read(pid, before)
            found: dict[Mark, set[int]] = {}
            for pid, known in self._known.items():
                if known.mark is not None:
                    found.setdefault(known.mark, set()).add(pid)
        return {mark: frozenset(pids) for mark, pids in found.items()}

    def of(self, owner: str) -> Mapping[int, int]:
        """Those of one gateway that were there at the last look, and when each began; never those of another one."""
        with self._lock:
            known = self._known.items()
            return {pid: one.began for pid, one in known if one.mark is not None and one.mark.owner == owner}

    def _read(self, pid: int, before: Mapping[int, _Known]) -> _Known:
        parent, began = _stat(pid)
        its_parent = self._known.get(parent) or before.get(parent)
        return _Known(began, _mark_of(pid) or (its_parent.mark if its_parent else None))

    def end(self, mark: Mark, limit_s: float) -> list[Left]:
        """Kills all of them, and those that they start meanwhile. Returns those that do not end."""
        until, pause_s = time.monotonic() + limit_s, _PAUSE_S
        while True:
            left = set(self.look().get(mark, ()))
            left |= {pid for pid, found in _marked() if found == mark}
            left = {pid for pid in left if self._kill(pid, mark)}
            if not left:
                return []
            if time.monotonic() >= until:
                return [_left(pid) for pid in sorted(left)]
            time.sleep(pause_s)
            pause_s *= 2

    def _kill(self, pid: int, mark: Mark) -> bool:
        """Whether it was there, and no other process that has got its number."""
        try:
            process = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            known = self._known.get(pid)
            is_it = (known is not None and known.mark == mark and known.began == _stat(pid)[1]) or _mark_of(pid) == mark
            if is_it and not _has_ended(pid):
                kill(process)
                return True
        except OSError:
            pass
        finally:
            os.close(process)
        return False


def kill(process: int) -> None:
    """Raises OSError. By a descriptor: it means this process and no later one."""
    with suppress(PermissionError):
        signal.pidfd_send_signal(process, signal.SIGKILL)


def own_name() -> str:
    """What this process is called in marks."""
    return f"{_namespace()}-{os.getpid()}-{_stat(os.getpid())[1]}"


def orphans() -> set[Mark]:
    """Of gateways that are no more. One that cannot be asked for, in another namespace, may live."""
    ours = _namespace()
    found = {mark for pid, mark in _marked() if _is_ours(pid)}
    return {mark for mark in found if mark.owner.split("-")[0] == ours and not _lives(mark.owner)}


def _marked() -> Iterator[tuple[int, Mark]]:
    """As they say themselves."""
    for pid in _pids():
        if (mark := _mark_of(pid)) is not None:
            yield pid, mark


def environment(mark: Mark) -> Mapping[str, str]:
    """For the engine. Programs that change their title would write it over their environment."""
    return {VARIABLE: str(mark), "SPT_NOENV": "1"}


def _lives(owner: str) -> bool:
    _, pid, began = owner.split("-")
    try:
        return _stat(int(pid))[1] == int(began)
    except OSError:
        return False


def _namespace() -> str:
    return str(os.stat("/proc/self/ns/pid").st_ino)


def _pids() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _mark_of(pid: int) -> Mark | None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = b"\0" + file.read()
    except OSError:
        return None
    _, _, rest = variables.partition(b"\0" + VARIABLE.encode() + b"=")
    return Mark.read(rest.partition(b"\0")[0].decode(errors="replace")) if rest else None


def _stat(pid: int) -> tuple[int, int]:
    """Its parent, and when it began. Raises OSError."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    if len(fields) < 20:
        raise ProcessLookupError(pid)
    return int(fields[1]), int(fields[19])


def _is_ours(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False


def _has_ended(pid: int) -> bool:
    """Raises OSError. If it has come to this process, as it had lost its parent, nothing is left of it then."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        has_ended = file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    if has_ended:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return has_ended


def _left(pid: int) -> Left:
    name, memory_mib = "gone", 0
    with suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
        with open(f"/proc/{pid}/statm", "rb") as file:
            memory_mib = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    return Left(pid, name, memory_mib)
