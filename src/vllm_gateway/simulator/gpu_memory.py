# SPDX-License-Identifier: Apache-2.0
"""Simulated GPUs: whose memory is taken by whom, kept in a directory that processes and containers share.

    gpus/<index>    "key=value" lines: uuid, name, total_mib, reserved_mib, util, error, mig
    gpus/<index>.<n>   the same of a MIG device of a GPU with mig=1, in whose place they stand
    alloc/<name>    "gpu=<uuid>", "mib=<n>" and "pid=<n>" lines
    lock            held while somebody checks what is free and takes it, so that the two are one step

An allocation counts only while some process holds an exclusive flock on its file. The kernel drops the lock when the
holder dies, SIGKILL included, and the lock is seen across containers that mount the directory: like memory on a real
GPU, nothing has to be cleaned up. Nothing is cached: each call reads the directory.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_NAME = re.compile(r"\d+(\.\d+)?")
DEFAULT_DIRECTORY = "/run/simulated-gpus"


class OutOfGpuMemoryError(Exception):
    """There is less free memory on the GPU than was asked for."""

    def __init__(self, gpu: SimulatedGpu, wanted_mib: int) -> None:
        super().__init__(f"{gpu.uuid}: wanted {wanted_mib} MiB, {gpu.free_mib} MiB free of {gpu.total_mib} MiB")
        self.gpu = gpu
        self.wanted_mib = wanted_mib


@dataclass(frozen=True, slots=True)
class SimulatedGpu:
    """One GPU as it is now. `error` is the NVML return code to answer with (0: healthy)."""

    index: int
    uuid: str
    name: str
    total_mib: int
    reserved_mib: int = 0
    used_mib: int = 0
    error: int = 0
    processes: list[tuple[int, int]] = field(default_factory=list)
    """(pid, MiB) of each holder; the pid is the holder's own view, 0 if it did not say."""

    @property
    def free_mib(self) -> int:
        return max(0, self.total_mib - self.reserved_mib - self.used_mib)


@dataclass(slots=True)
class Allocation:
    """Memory taken on one GPU, held until `release()`, the end of the process, or nobody keeps this object."""

    gpu: str
    mib: int
    path: Path
    _file: IO[str]

    def release(self) -> None:
        """Gives the memory back; a second call does nothing."""
        with suppress(OSError):
            self.path.unlink()
        self._file.close()


class SimulatedGpus:
    """The GPUs of one directory.

    >>> gpus = SimulatedGpus(tmp_path)
    >>> gpus.create([("NVIDIA A100-SXM4-40GB", 40960)])
    >>> kept = gpus.take("GPU-sim-0", 1024)
    >>> gpus.gpus()[0].free_mib
    39936
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._gpus = self.directory / "gpus"
        self._allocations = self.directory / "alloc"

    @property
    def exists(self) -> bool:
        return self._gpus.is_dir()

    def create(self, devices: Sequence[tuple[str, int]], *, reserved_mib: int = 0) -> None:
        """Makes the directory with one GPU for each (name, total MiB); their UUIDs are GPU-sim-0, GPU-sim-1, ..."""
        self._gpus.mkdir(parents=True, exist_ok=True)
        self._allocations.mkdir(exist_ok=True)
        for index, (name, total_mib) in enumerate(devices):
            values: dict[str, int | str] = {
                "uuid": f"GPU-sim-{index}",
                "name": name,
                "total_mib": total_mib,
                "reserved_mib": reserved_mib,
            }
            _write_fields(self._gpus / str(index), values)

    def update(self, index: int, **values: int | str) -> None:
        """Changes fields of one GPU (error=15: it has fallen off the bus); read by everybody at their next call."""
        path = self._gpus / str(index)
        _write_fields(path, _read_fields(path) | values)

    def split(self, index: int, *sizes_mib: int) -> None:
        """Puts a GPU into MIG mode, with a device of each size: MIG-sim-<index>-0, ..."""
        whole = _read_fields(self._gpus / str(index))
        for number, mib in enumerate(sizes_mib):
            values: dict[str, int | str] = {
                "uuid": f"MIG-sim-{index}-{number}",
                "name": f"{whole['name']} MIG {mib} MiB",
                "total_mib": mib,
            }
            _write_fields(self._gpus / f"{index}.{number}", values)
        self.update(index, mig=1)

    def gpus(self) -> list[SimulatedGpu]:
        """All GPUs in the order of their indices, with the memory that live processes hold."""
        held = self._held()
        found = []
        files = [path for path in self._gpus.iterdir() if _NAME.fullmatch(path.name)]
        for path in sorted(files, key=lambda entry: [int(part) for part in entry.name.split(".")]):
            values = _read_fields(path)
            if values.get("mig") == "1":
                continue
            processes = [(pid, mib) for gpu, pid, mib in held if gpu == values["uuid"]]
            found.append(
                SimulatedGpu(
                    index=int(path.stem),
                    uuid=values["uuid"],
                    name=values["name"],
                    total_mib=int(values["total_mib"]),
                    reserved_mib=int(values.get("reserved_mib", "0")),
                    used_mib=sum(mib for _, mib in processes),
                    error=int(values.get("error", "0")),
                    processes=processes,
                )
            )
        return found

    def gpu(self, uuid: str) -> SimulatedGpu:
        for candidate in self.gpus():
            if candidate.uuid == uuid:
                return candidate
        raise KeyError(f"no GPU {uuid} in {self.directory}")

    def take(self, gpu: SimulatedGpu | str, mib: int, name: str = "process") -> Allocation:
        """Takes `mib` on a GPU, or raises OutOfGpuMemoryError. Keep what it returns. `name` is for human readers."""
        uuid = gpu if isinstance(gpu, str) else gpu.uuid
        with self._exclusively():
            now = self.gpu(uuid)
            if mib > now.free_mib:
                raise OutOfGpuMemoryError(now, mib)
            return self._allocate(uuid, mib, f"{name}-{secrets.token_hex(6)}")

    def _allocate(self, uuid: str, mib: int, name: str) -> Allocation:
        # Readers skip hidden files: the allocation becomes visible only once it is locked and complete.
        hidden, visible = self._allocations / f".{name}", self._allocations / name
        file = hidden.open("w", encoding="ascii")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"gpu={uuid}\nmib={mib}\npid={os.getpid()}\n")
        file.flush()
        hidden.rename(visible)
        return Allocation(uuid, mib, visible, file)

    def _held(self) -> list[tuple[str, int, int]]:
        """(GPU's UUID, pid, MiB) of each allocation whose holder lives; files of the dead are removed."""
        held = []
        for path in list(self._allocations.iterdir()) if self._allocations.is_dir() else []:
            if path.name.startswith("."):
                continue
            with suppress(FileNotFoundError), path.open(encoding="ascii") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    values = _parse_fields(file.read())
                    held.append((values["gpu"], int(values.get("pid", "0")), int(values["mib"])))
                else:
                    with suppress(OSError):
                        path.unlink()
        return held

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        with (self.directory / "lock").open("a", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def visible_gpus(gpus: Sequence[SimulatedGpu], environment: Mapping[str, str]) -> list[SimulatedGpu]:
    """The GPUs that this process may use, in its order.

    NVIDIA_VISIBLE_DEVICES is what the container runtime lets in; CUDA_VISIBLE_DEVICES then counts within those.
    """
    let_in = _select(gpus, environment.get("NVIDIA_VISIBLE_DEVICES", "all"))
    return _select(let_in, environment.get("CUDA_VISIBLE_DEVICES", "all"))


def _select(gpus: Sequence[SimulatedGpu], wanted: str) -> list[SimulatedGpu]:
    if wanted == "all":
        return list(gpus)
    by_name = {str(position): gpu for position, gpu in enumerate(gpus)} | {gpu.uuid: gpu for gpu in gpus}
    return [by_name[name] for name in (part.strip() for part in wanted.split(",")) if name in by_name]


def _parse_fields(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _read_fields(path: Path) -> dict[str, str]:
    return _parse_fields(path.read_text(encoding="utf-8"))


def _write_fields(path: Path, values: Mapping[str, int | str]) -> None:
    hidden = path.with_name(f".{path.name}")
    hidden.write_text("".join(f"{key}={value}\n" for key, value in values.items()), encoding="utf-8")
    hidden.rename(path)
