# SPDX-License-Identifier: Apache-2.0
"""Unix sockets that the gateway makes: nobody else's is taken away, and nobody connects who may not."""

import errno
import os
import socket
import stat
from pathlib import Path


def bind_unix(path: Path, mode: int, *, replaces_living: bool = False) -> socket.socket:
    """Bound, with that mode, and not listening yet. Raises OSError, which says what lies there.

    `replaces_living`: of this user, a socket that somebody listens on, too.
    """
    _make_way(path, replaces_living=replaces_living)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        previous = os.umask(0o177)
        try:
            bound.bind(str(path))
        finally:
            os.umask(previous)
        path.chmod(mode)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"{path}: {error.strerror or error}") from error
    return bound


def unlink_own(path: Path) -> None:
    """If it is a socket of this user still. Raises OSError."""
    if (there := _lstat(path)) is not None and stat.S_ISSOCK(there.st_mode) and there.st_uid == os.getuid():
        path.unlink(missing_ok=True)


def is_dead(path: Path) -> bool:
    """Whether nobody listens there. A connection to one that lives is closed at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            return False
    return False


def _make_way(path: Path, *, replaces_living: bool) -> None:
    there = _lstat(path)
    if there is None:
        return
    if there.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, f"{path} belongs to another user")
    if not stat.S_ISSOCK(there.st_mode):
        raise FileExistsError(errno.EEXIST, f"{path} is there, and no socket")
    if not (replaces_living or is_dead(path)):
        raise OSError(errno.EADDRINUSE, f"{path}: somebody listens there already")
    path.unlink(missing_ok=True)


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
