# SPDX-License-Identifier: Apache-2.0
"""Errors that tell of what this process or its machine lacks, so that no engine is blamed for them."""

import errno

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


def is_shortage(error: BaseException) -> bool:
    """Of open files, memory or ports."""
    return isinstance(error, OSError) and error.errno in _OURS
