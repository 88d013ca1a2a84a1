# SPDX-License-Identifier: Apache-2.0
"""The sockets that clients connect to: bound here, or handed in by systemd (socket activation)."""

import os
import socket
from collections.abc import Mapping

BACKLOG = 1024
_FIRST_INHERITED = 3  # by systemd's convention


def inherited(environ: Mapping[str, str]) -> list[socket.socket]:
    """Those that systemd has opened for this process; none if it has not."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    numbers = range(_FIRST_INHERITED, _FIRST_INHERITED + int(environ.get("LISTEN_FDS", "0")))
    return [socket.socket(fileno=number) for number in numbers]


def bind(host: str, port: int) -> list[socket.socket]:
    """One for each address that `host` means. Raises OSError."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
    except OSError as error:
        for listening in sockets:
            listening.close()
        text = f"{host}:{port} cannot be listened on ({error.strerror}). Choose another address with --host and --port."
        raise OSError(error.errno, text) from error
    return sockets


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
