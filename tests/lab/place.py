# SPDX-License-Identifier: Apache-2.0
"""Where a lab lives: every path and name that belongs to it, derived from its one directory.

Everything on the machine that carries one of these names is the lab's own, and nothing else is touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.errors import LabUnavailableError

_MAX_SOCKET_PATH = 107
"""The kernel's limit for the path of a unix socket, in bytes."""


@dataclass(frozen=True, slots=True)
class Place:
    """One lab's directory. Two labs in two directories do not meet."""

    directory: Path

    def __post_init__(self) -> None:
        if len(os.fsencode(self.socket)) > _MAX_SOCKET_PATH:
            raise LabUnavailableError(f"{self.socket} is too long for a unix socket: set LAB_RUN_DIR to a shorter path")

    @classmethod
    def from_environment(cls) -> Place:
        chosen = os.environ.get("LAB_RUN_DIR") or Path(tempfile.gettempdir()) / "vllm-gateway-lab"
        return cls(Path(chosen).absolute())

    def neighbour(self, number: int) -> Place:
        """Number 1 is this one itself."""
        return self if number == 1 else Place(Path(f"{self.directory}-{number}"))

    @property
    def socket(self) -> Path:
        return self.directory / "docker.sock"

    @property
    def config_file(self) -> Path:
        """Also how the lab's dockerd is recognised: this path stands in its command line and in no other's."""
        return self.directory / "dockerd.json"

    @property
    def data_root(self) -> Path:
        return self.directory / "data"

    @property
    def exec_root(self) -> Path:
        return self.directory / "exec"

    @property
    def dockerd_pid_file(self) -> Path:
        return self.directory / "dockerd.pid"

    @property
    def containerd_pid_file(self) -> Path:
        return self.exec_root / "containerd" / "containerd.pid"

    @property
    def dockerd_log(self) -> Path:
        return self.directory / "dockerd.log"

    @property
    def gpu_directory(self) -> Path:
        return self.directory / "gpus"

    @property
    def library_directory(self) -> Path:
        return self.directory / "lib"

    @property
    def bridge(self) -> str:
        """The name of a network interface has at most 15 characters."""
        return "vgl-" + hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:8]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One change at a time: a second `up` or `down` waits for the first."""
        with self._beside(".lock").open("a", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether this test run has the lab for itself; two runs would remove each other's containers."""
        with self._beside(".claim").open("a", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _beside(self, suffix: str) -> Path:
        """Not inside the directory: it outlives a purge, on which another process may be waiting."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        return self.directory.with_name(self.directory.name + suffix)
