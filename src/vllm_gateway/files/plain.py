# SPDX-License-Identifier: Apache-2.0
"""Plain files of bounded size: a pipe would be waited for without end, and a device has no end."""

import errno
import os
import stat
from pathlib import Path
from typing import IO


def read_plain(path: Path, most_bytes: int) -> bytes:
    """Raises OSError, whose `strerror` says what is wrong."""
    with open_plain(path) as file:
        content = file.read(most_bytes + 1) if os.fstat(file.fileno()).st_size <= most_bytes else None
    if content is None or len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {_in_words(most_bytes)}", str(path))
    return content


def open_plain(path: Path) -> IO[bytes]:
    """Never waits for a writer. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a plain file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _in_words(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count} bytes"
