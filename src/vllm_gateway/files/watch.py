# SPDX-License-Identifier: Apache-2.0
"""Notices that files have changed, whoever writes them in whichever way."""

from collections.abc import Sequence
from pathlib import Path

from vllm_gateway.files.aside import aside

Stamp = tuple[int, ...] | None

_LOOKS = 2  # that find the same: then a change counts
_GONE_LOOKS = 5  # for what is missing or empty: it may be written at this moment


class Watch:
    """Of files that may be written in place, replaced, or missing in between: a change counts once all are at rest.

    Make one before the files are read: a change while they are read is one.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._told = self._before = self._stamps()
        self._looks = 0  # that have found the same

    async def look(self) -> bool:
        """Whether there is a change to tell of. Of a drive that does not answer there is one look, until it does."""
        now = await aside(self._stamps, None)
        self._looks = self._looks + 1 if now == self._before else 1
        self._before = now
        if now == self._told or self._looks < (_GONE_LOOKS if None in now else _LOOKS):
            return False
        self._told = now
        return True

    def _stamps(self) -> tuple[Stamp, ...]:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> Stamp:
    """What differs once a file was written, replaced or given to others, behind links too; None: nothing is in it."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not status.st_size:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode, status.st_uid, status.st_gid
