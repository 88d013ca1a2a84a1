# SPDX-License-Identifier: Apache-2.0
"""The machine: what it is, which core the proxy gets, and the C programs built for it."""

import hashlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
WORK = ROOT / ".bench"  # what the benchmark builds, installs and writes; git ignores it


class CannotMeasure(Exception):
    """The machine lacks something; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The proxy has one for itself; backends and load share the others."""

    proxy: int
    load: tuple[int, ...]

    @property
    def load_list(self) -> str:
        return ",".join(map(str, self.load))


def choose_cores() -> Cores:
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise CannotMeasure("Two cores are needed: one for the proxy, one for the backends and the load.")
    return Cores(usable[-1], tuple(usable[:-1]))


@dataclass(frozen=True, slots=True)
class Tools:
    backend: Path
    streams: Path
    requests: Path
    wrk: str


def build_tools() -> Tools:
    """Compiles what changed since the last time."""
    wrk = shutil.which("wrk")
    if wrk is None or shutil.which("gcc") is None or shutil.which("taskset") is None:
        raise CannotMeasure("wrk, gcc or taskset is missing: apt-get install wrk gcc libc6-dev util-linux nginx-light")
    return Tools(_compiled("backend"), _compiled("streams"), _compiled("requests"), wrk)


def _compiled(name: str) -> Path:
    source = HERE / f"{name}.c"
    program = WORK / "bin" / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        made = program.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-Wall", "-Wno-format-truncation", "-o", made, source], check=True)
        made.rename(program)
    return program


def describe() -> dict[str, str]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "memory": f"{memory_kib / (1 << 20):.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
