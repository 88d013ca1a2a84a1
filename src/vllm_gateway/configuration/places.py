# SPDX-License-Identifier: Apache-2.0
"""What is to be made on this machine's disk, and could not be made where the configuration names it."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.configuration.state_dir import wanted_folder

_LONGEST_SOCKET = 107  # bytes, by the kernel


def needed_places(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Without which the gateway does not start."""
    server = settings.server
    is_handed_in = bool(environ.get("LISTEN_FDS"))
    if server.socket is not None and not is_handed_in and (problem := _of_socket(Path(server.socket))):
        yield f"server.socket: {problem}"
    if settings.record_trace is not None and (problem := _of_file(Path(settings.record_trace))):
        yield f"record_trace: {problem}"


def lesser_places(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Without which it does start, and goes without."""
    if settings.server.control_socket is not None and (problem := _of_socket(Path(settings.server.control_socket))):
        yield f"server.control_socket: {problem}"
    if os.path.isdir(settings.memory_footprint_file):
        yield f"memory_footprint_file: {settings.memory_footprint_file} is a folder; name a file"
    folder = wanted_folder(settings, environ)
    if os.path.lexists(folder) and not folder.is_dir():
        yield f"state_dir: {folder} is not a folder"


def _of_socket(path: Path) -> str | None:
    if (length := len(os.fsencode(path))) > _LONGEST_SOCKET:
        return f"the path has {length} bytes, and that of a socket can have {_LONGEST_SOCKET}; name a shorter one"
    try:
        is_other = not stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return _of_folder(path)
    return f"{path} is there, and no socket; name another path" if is_other else None


def _of_file(path: Path) -> str | None:
    return f"{path} is a folder; name a file" if os.path.isdir(path) else _of_folder(path)


def _of_folder(path: Path) -> str | None:
    return None if os.path.isdir(path.parent) else f"there is no folder {path.parent}; make it, or name another path"
