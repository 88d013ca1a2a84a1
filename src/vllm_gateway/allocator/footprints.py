# SPDX-License-Identifier: Apache-2.0
"""Keeps measured footprints on disk, so that no model needs its discovery run twice.

A damaged file costs new measurements, never the start of the gateway: it is set aside and reported.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import MappingProxyType

from vllm_gateway.files.plain import read_plain

VERSION = 1
_MOST_BYTES = 16 << 20
_SAVING_S = 10.0


def footprint_key(repository: str, image: str, arguments: Sequence[str], gpu_name: str) -> str:
    """What a footprint depends on, readable by people.

    >>> footprint_key("google/gemma-3-4b-it", "vllm/vllm-openai:v0.32.0", [], "NVIDIA L4")
    'google/gemma-3-4b-it | vllm/vllm-openai:v0.32.0 | args-4f53cda18c2b | NVIDIA L4'
    """
    digest = hashlib.sha256(json.dumps(list(arguments)).encode()).hexdigest()[:12]
    return f"{repository} | {image} | args-{digest} | {gpu_name}"


class FootprintStore:
    """Footprints in MiB by key: in memory once loaded, on disk once saved."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._temporary = self._path.with_name(f"{self._path.name}.tmp")
        self._mib: dict[str, int] = {}
        self._saving = Lock()

    def load(self) -> str | None:
        """Reads the file; a missing one is an empty one. Returns a warning if there is something to tell."""
        self._mib = {}
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)  # of one that was killed while it saved
        try:
            content = read_plain(self._path, _MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"the footprints in {self._path} cannot be read and will be measured anew: {error}"
        try:
            self._mib, strange = _parse(content)
        except ValueError as error:
            return (
                f"the footprints in {self._path} are damaged ({error}) and will be measured anew; {self._set_aside()}"
            )
        return f"{strange} footprints in {self._path} make no sense and are left out" if strange else None

    def get(self, key: str) -> int | None:
        return self._mib.get(key)

    def put(self, key: str, mib: int) -> None:
        assert mib > 0, (key, mib)
        self._mib[key] = mib

    def all(self) -> Mapping[str, int]:
        return MappingProxyType(self._mib)

    def save(self) -> None:
        """Writes the file whole or not at all, from any thread. Raises OSError, with the old file intact."""
        if not self._saving.acquire(timeout=_SAVING_S):
            raise TimeoutError(f"{self._path} is being written, and its drive does not answer")
        try:
            self._save({"version": VERSION, "footprints_mib": dict(self._mib)})
        finally:
            self._saving.release()

    def _save(self, document: Mapping[str, object]) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = json.dumps(document, indent=2, sort_keys=True)
        try:
            self._temporary.unlink(missing_ok=True)  # whoever made it, and whoever may read it
            with open(self._temporary, "x", encoding="utf-8", opener=_private) as file:
                file.write(content + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._temporary, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            raise
        _sync_directory(self._path.parent)

    def _set_aside(self) -> str:
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.damaged-{number}")).exists():
            number += 1
        try:
            self._path.rename(aside)
        except OSError as error:
            return f"the file could not be set aside: {error}"
        return f"the file was set aside as {aside}"


def _parse(content: bytes) -> tuple[dict[str, int], int]:
    """The footprints, and how many entries had to be left out. ValueError: this is no file of footprints."""
    try:
        document = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"not a file of version {VERSION}")
    entries = document.get("footprints_mib")
    if not isinstance(entries, dict):
        raise ValueError("no object `footprints_mib`")  # noqa: TRY004 - a damaged file, not a bug of the caller
    good = {key: mib for key, mib in entries.items() if type(mib) is int and mib > 0}
    return good, len(entries) - len(good)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_directory(directory: Path) -> None:
    """Makes the new name last through a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
