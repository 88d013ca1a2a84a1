# SPDX-License-Identifier: Apache-2.0
"""Temporary files that outlive a gateway which is killed: the next one removes those whose owner lives no more."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_gateway.service.unix_sockets import is_dead

_OWNER = "owner"  # locked for as long as the owner of its folder lives
_BOUND_S = 60.0  # a socket that has had a name for this long listens, or never will


@contextmanager
def own_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder of this process; those that killed ones have left go. Raises OSError."""
    for other in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            _remove_if_nobody_lives_there(other)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        hidden = folder / f".{_OWNER}"
        with hidden.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            hidden.rename(folder / _OWNER)  # never seen without its lock
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_nobody_lives_there(folder: Path) -> None:
    """Raises OSError if somebody does, or nobody can tell."""
    there = folder.lstat()
    if stat.S_ISDIR(there.st_mode) and there.st_uid == os.getuid():
        with (folder / _OWNER).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def remove_dead_sockets(folder: Path, pattern: str) -> None:
    """Of this user, and links to those that are gone. A connection to one that lives is closed at once."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            there = path.lstat()
            if there.st_uid != os.getuid() or time.time() - there.st_mtime <= _BOUND_S:
                continue
            leads_nowhere = stat.S_ISLNK(there.st_mode) and not path.exists()
            if leads_nowhere or (stat.S_ISSOCK(there.st_mode) and is_dead(path)):
                path.unlink()
