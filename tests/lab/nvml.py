# SPDX-License-Identifier: Apache-2.0
"""Builds the stand-in for NVIDIA's management library, so that the real binding runs on a machine without a GPU."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

from tests.lab.shell import run

_SOURCE = Path(__file__).with_name("nvml_stand_in.c")
_LIBRARY = "libnvidia-ml.so.1"


def build_library(directory: Path) -> Path:
    """`directory`/libnvidia-ml.so.1, built when its source is newer; a process finds it through LD_LIBRARY_PATH."""
    library = directory / _LIBRARY
    if library.exists() and library.stat().st_mtime >= _SOURCE.stat().st_mtime:
        return library
    directory.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory(dir=directory) as unfinished:
        built = Path(unfinished) / _LIBRARY
        run("gcc", *flags, f"-Wl,-soname,{_LIBRARY}", "-o", built, _SOURCE)
        built.rename(library)
    return library


def preload(directory: Path) -> None:
    """Makes pynvml find the stand-in in this very process, for which LD_LIBRARY_PATH comes too late.

    The loader knows a library by its soname: once this one is loaded, a later request by name gets it.
    """
    ctypes.CDLL(str(build_library(directory)), mode=ctypes.RTLD_GLOBAL)
