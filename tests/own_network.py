# SPDX-License-Identifier: Apache-2.0
"""Test processes that run side by side each have a network of their own, so that no two can want the same port."""

import ctypes
import fcntl
import os
import socket
import struct

_CLONE_NEWNET = 0x40000000
_GET_FLAGS, _SET_FLAGS = 0x8913, 0x8914
_IS_UP = 0x1


def enter() -> bool:
    """With nothing in it but loopback, for this thread and all that it starts; False where that is not allowed.

    Needs root, as the lab does. Where there is no lab, nothing in the tests wants a port that another one has.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xH", fcntl.ioctl(any_socket, _GET_FLAGS, request))
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14x", b"lo", flags | _IS_UP))
    return True


def of(pid: int | str = "self") -> int:
    """Which network the process is in: the same number, the same network."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino
