# SPDX-License-Identifier: Apache-2.0
"""Processes that are measured: started on their core, awaited until they answer, counted, ended in every case."""

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_END_LIMIT_S = 10.0
_TRIES_FOR_REST = 100
_SCHEDULED = 2  # the kernel's CPUCLOCK_SCHED: what the scheduler counted, of all threads


class NotServing(Exception):
    """A process did not start or ended; the text has its last words."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and its descendants, living and ended."""

    cpu_s: float
    rss_kib: int


@contextmanager
def running(
    argv: Sequence[str], *, cores: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command, pinned to `cores`, its output appended to `log`; it and its descendants end with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["taskset", "-c", cores, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    descendants = _tree(process.pid)
    process.terminate()
    try:
        process.wait(_END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in descendants:  # those that did not end with their parent, whatever session they are in
        if pid != process.pid and Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def usage(pid: int) -> Usage:
    cpu_ticks = rss_pages = 0
    for one in _tree(pid):
        fields = _stat(one)
        if fields is not None:
            cpu_ticks += sum(map(int, fields[11:15]))  # user and system, its own and its ended children's
            rss_pages += int(fields[21])
    return Usage(cpu_ticks / _TICKS, rss_pages * _PAGE_KIB)


class CpuClock:
    """The CPU time that a process and its descendants take, to the nanosecond; those that there are when it is made.

    The kernel brings a process's clock up to date when it leaves the core, and else at ticks, some milliseconds apart.
    """

    def __init__(self, pid: int) -> None:
        self._pids = _tree(pid)
        self._last_s = self._now_s()

    def lap(self) -> float:
        """Seconds since the last lap: laps leave nothing out."""
        before, self._last_s = self._last_s, self._now_s()
        return self._last_s - before

    def _now_s(self) -> float:
        return sum(_process_clock_s(pid) for pid in self._pids)


def _process_clock_s(pid: int) -> float:
    for _ in range(_TRIES_FOR_REST):
        fields = _stat(pid)
        if fields is None:
            raise NotServing(f"process {pid} ended while it was measured")
        if fields[0] != "R":
            break
    return time.clock_gettime((~pid << 3) | _SCHEDULED)  # as clock_getcpuclockid(3) makes it


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry))
    tree = [root]
    for pid in tree:
        tree += children.get(pid, [])
    return tree


def _stat(pid: int) -> list[str] | None:
    """The fields after the process's name: state, parent, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def free_port() -> int:
    """Below those that the kernel gives to outgoing connections, which could take it before somebody listens there."""
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(min(10_000, end), end), min(100, max(0, end - 10_000))):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    with socket.create_server(("127.0.0.1", 0)) as server:
        chosen: int = server.getsockname()[1]
        return chosen


def get_status(address: Address, path: str, timeout_s: float = 2.0) -> int | None:
    """The status of a GET; None: nobody answers."""
    return _status(address, "GET", path, None, timeout_s)


def post_status(address: Address, path: str, body: bytes, timeout_s: float = 30.0) -> int | None:
    return _status(address, "POST", path, body, timeout_s)


def _status(address: Address, method: str, path: str, body: bytes | None, timeout_s: float) -> int | None:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        with connection.getresponse() as response:
            response.read()
            return response.status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def wait_until_ok(process: subprocess.Popen[bytes], address: Address, path: str, limit_s: float, log: Path) -> None:
    deadline = time.monotonic() + limit_s
    status: int | None = None
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotServing(f"ended with status {process.returncode} before it served: {last_words(log)}")
        status = get_status(address, path)
        if status == 200:
            return
        time.sleep(0.02)
    raise NotServing(f"GET {path} gave {status or 'no answer'} for {limit_s:.0f} s: {last_words(log)}")


def last_words(log: Path, length: int = 300) -> str:
    text = log.read_bytes()[-length:].decode("utf-8", "replace")
    return " ".join(text.split()) or "(no output)"
