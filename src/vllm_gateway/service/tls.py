# SPDX-License-Identifier: Apache-2.0
"""TLS at the door: whose first byte asks for it gets it, and the certificate is read again when its files change."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.front_door import FrontDoor
from vllm_gateway.configuration.draft import ConfigError, Problem
from vllm_gateway.configuration.settings import Tls
from vllm_gateway.configuration.tls import BadTls, context_of, is_exposed
from vllm_gateway.files.aside import aside
from vllm_gateway.files.watch import Watch
from vllm_gateway.telemetry import events

WATCH_S = 2.0
_HANDSHAKE = b"\x16"  # the first byte of TLS
_SEEN_BYTES = 2048
_SAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """Of `server.tls`, as its files were when they were read."""

    tls: Tls
    context: ssl.SSLContext
    watch: Watch
    is_exposed: bool


def read(tls: Tls | None) -> Certificate | None:
    """May take long, as files may. Raises ConfigError."""
    if tls is None:
        return None
    watch = Watch([Path(name) for name in (tls.certificate, tls.key, tls.client_ca) if name is not None])
    try:
        return Certificate(tls, context_of(tls), watch, is_exposed(tls))
    except BadTls as error:
        raise ConfigError([Problem(f"server.tls.{error.setting}", str(error))]) from None


class TlsDoor:
    """Lets connections in to `door`: by TLS while there is a certificate, plain otherwise."""

    def __init__(self, door: FrontDoor, emit: Callable[..., None]) -> None:
        self._door = door
        self._emit: Callable[..., None] = emit
        self._loop = asyncio.get_running_loop()
        self._tls: Tls | None = None
        self._watch: Watch | None = None
        self._context: ssl.SSLContext | None = None
        self._said_at = -_SAY_S
        self._failures = 0

    @property
    def is_closed_to_plain(self) -> bool:
        return self._context is not None

    def configure(self, certificate: Certificate | None) -> None:
        """As it was read; None: no TLS."""
        self._tls = self._context = self._watch = None
        if certificate is not None:
            self._tls, self._context, self._watch = certificate.tls, certificate.context, certificate.watch
            if certificate.is_exposed:
                self._emit(events.TLS_KEY_EXPOSED, key=certificate.tls.key)

    async def watch(self) -> None:
        """Looks once whether the files have changed."""
        watch, tls = self._watch, self._tls
        if watch is None or tls is None or not await watch.look() or watch is not self._watch:
            return
        try:
            context = await aside(partial(context_of, tls))
        except BadTls as error:
            self._emit(events.TLS_RELOAD_FAILED, setting=error.setting, problem=str(error))
        except TimeoutError as error:
            self._emit(events.TLS_RELOAD_FAILED, setting="certificate", problem=str(error))
        else:
            if watch is self._watch:  # and no reload came in between
                self._context = context
                self._emit(events.TLS_LOADED, certificate=tls.certificate)

    async def let_in(self, connection: socket.socket) -> None:
        """Raises OSError: the client is gone, or wants something else."""
        context = self._context
        if context is None:
            await self._loop.connect_accepted_socket(self._door, connection)
            return
        limit_s = self._door.bounds.head_s
        async with asyncio.timeout(limit_s):
            seen = await self._first_bytes(connection)
        if not seen.startswith(_HANDSHAKE):
            await self._loop.connect_accepted_socket(lambda: _Plain(self._door, seen), connection)
            return
        client = connection.getpeername()
        try:
            await self._loop.connect_accepted_socket(
                self._door, connection, ssl=context, ssl_handshake_timeout=limit_s, ssl_shutdown_timeout=limit_s
            )
        except ssl.SSLError as error:
            self._say_failure(str(client[0]) if isinstance(client, tuple) else "", error.reason or str(error))
            raise

    async def _first_bytes(self, connection: socket.socket) -> bytes:
        """They stay where they are. Raises OSError at the end of the connection."""
        while True:
            with contextlib.suppress(BlockingIOError, InterruptedError):
                if seen := connection.recv(_SEEN_BYTES, socket.MSG_PEEK):
                    return seen
                raise ConnectionResetError
            readable = self._loop.create_future()
            self._loop.add_reader(connection, _resolve, readable)
            try:
                await readable
            finally:
                self._loop.remove_reader(connection)

    def _say_failure(self, client: str, reason: str) -> None:
        self._failures += 1
        now = self._loop.time()
        if now - self._said_at >= _SAY_S:
            self._said_at = now
            self._emit(events.TLS_HANDSHAKE_FAILED, client=client, reason=reason, count=self._failures)
            self._failures = 0


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Plain(asyncio.Protocol):
    """A client that speaks HTTP where HTTPS is spoken: it is told so."""

    def __init__(self, door: FrontDoor, seen: bytes) -> None:
        self._door = door
        self._seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        text = "This port speaks HTTPS. Let the address begin with https://, and send no secret in the clear."
        self._door.refuse(cast(asyncio.Transport, transport), ApiError("tls_required", text), self._seen)
