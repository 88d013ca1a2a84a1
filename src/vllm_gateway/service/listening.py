# SPDX-License-Identifier: Apache-2.0
"""The sockets that clients connect to: bound here, or handed in by systemd (socket activation)."""

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vllm_gateway.configuration.draft import ConfigError, Problem
from vllm_gateway.configuration.openness import open_to_others
from vllm_gateway.configuration.settings import Server
from vllm_gateway.service.unix_sockets import bind_unix

_FIRST_INHERITED = 3  # by systemd's convention


def inherited(environ: Mapping[str, str]) -> list[socket.socket]:
    """Those that systemd has opened for this process; none if it has not. Raises OSError if they are of no use."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = [socket.socket(fileno=_FIRST_INHERITED + number) for number in range(int(count))]
    for one in sockets:
        one.set_inheritable(False)  # engines have no business with it
        if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("systemd has handed in a socket that does not listen: it needs ListenStream=, and no Accept=")
    return sockets


def port_of(sockets: Sequence[socket.socket]) -> int | None:
    """Of the first one that has a port."""
    return next((one.getsockname()[1] for one in sockets if one.family != socket.AF_UNIX), None)


def bind(server: Server) -> list[socket.socket]:
    """Its Unix socket, or one for each address that its host means. Raises OSError."""
    if server.socket is not None:
        return [bind_unix(Path(server.socket), int(server.socket_mode, 8))]
    host, port = server.host, server.port
    sockets: list[socket.socket] = []
    try:
        name = None if host in ("", "::") else host  # both families
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((address[0], port_of(sockets[:-1]) or port, *address[2:]))  # all have the port of the first
    except OSError as error:
        for listening in sockets:
            listening.close()
        text = f"{host}:{port} cannot be listened on ({error.strerror}). Choose another address with --host and --port."
        raise OSError(error.errno, text) from error
    return sockets


def check_openness(sockets: Iterable[socket.socket], server: Server) -> None:
    """Raises ConfigError if one of them is reached from other machines, and nobody wanted that."""
    for one in sockets:
        host = "localhost" if one.family == socket.AF_UNIX else one.getsockname()[0]
        if problem := open_to_others(server, host):
            raise ConfigError([Problem(url_of(one), problem)])


def url_of(listening: socket.socket, *, is_https: bool = False) -> str:
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    scheme = "https" if is_https else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
