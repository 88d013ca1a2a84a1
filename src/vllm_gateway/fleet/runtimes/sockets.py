# SPDX-License-Identifier: Apache-2.0
"""Where engines listen: each has a Unix socket in a folder of its own, which no other user of the machine can reach."""

import contextlib
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

NAME = "engine.sock"
_LONGEST_PATH = 107  # bytes, by the kernel
_FOLDER_LETTERS = 8
_LEFT_S = 24 * 3600.0  # an engine may take long until it listens, but not so long


def fits(folder: Path) -> bool:
    """Whether sockets of engines under `folder` have paths that are short enough."""
    return len(os.fsencode(folder)) + len(NAME) + _FOLDER_LETTERS + 2 <= _LONGEST_PATH


class EngineSockets:
    """Of one folder, which is this user's alone and may be shared by several gateways."""

    def __init__(self, folder: Path, anew: Callable[[], Path] | None = None) -> None:
        """`anew`: makes it again, should it have vanished, or another one in its place. Raises OSError."""
        self._folder = folder
        self._anew = anew
        self._all = {folder}

    def make(self, *, in_container: bool = False) -> Path:
        """The path for one engine's socket. Raises OSError.

        A container's user may be anyone: its folder is open, and closed off by the one around it.
        """
        if self._anew is not None:
            self._folder = self._anew()
            self._all.add(self._folder)
        own = self._folder / secrets.token_hex(_FOLDER_LETTERS // 2)
        own.mkdir(mode=0o700)
        if in_container:
            own.chmod(0o777)
        return own / NAME

    def remove(self, path: str | Path) -> None:
        """With its folder, of which of another gateway's no more goes than the socket."""
        own = Path(path).parent
        if own.parent in self._all:
            shutil.rmtree(own, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(path)
            own.rmdir()

    def sweep(self) -> None:
        """Removes what engines of gateways that were killed have left."""
        for own in self._folder.glob("*/"):
            with contextlib.suppress(OSError):
                if time.time() - own.stat().st_mtime > _LEFT_S and not _listens(own / NAME):
                    shutil.rmtree(own, ignore_errors=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
        return True
