# SPDX-License-Identifier: Apache-2.0
"""The relay: takes a request whose body has been read, finds it a connection to the instance, and sees it through."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Self

from vllm_gateway.bodies.payload import Payload, length_of
from vllm_gateway.relay.client import Client, ClientStalled, drain, is_gone, reset
from vllm_gateway.relay.exchange import Exchange
from vllm_gateway.relay.followed import FollowedExchange
from vllm_gateway.relay.heads import NO_HEADERS, REQUEST_ONLY_HERE, OwnHeaders, own_headers, request_head
from vllm_gateway.relay.renamed import RenamedExchange
from vllm_gateway.relay.stream import ClientStream
from vllm_gateway.relay.types import Carried, ClientGone, Instructions, Limits, UpstreamFailed
from vllm_gateway.relay.upstream import Connection, Pool
from vllm_gateway.routing import Address
from vllm_gateway.telemetry.shortage import is_shortage

_MOST_HEARD = 1000
_HEARD_KEPT_S = 600.0
_SHORTAGE_S = 0.05
"""Between two attempts to connect, while this process may open no more files: others are about to be closed."""


class Relay:
    """Carries requests to instances and their replies back; owns the connections to the instances.

    The server in front must cancel the task of a client that leaves (aiohttp's: `handler_cancellation=True`): that is
    how it is noticed within milliseconds (without it, at the next sweep or the next bytes of the reply). It must not
    decompress (`auto_decompress=False`), or the handler must drop Content-Encoding: the body goes on as it is given.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        drop_request_headers: frozenset[str] = frozenset({"cookie"}),
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._loop = loop or asyncio.get_running_loop()
        never = REQUEST_ONLY_HERE | {b"authorization"} | {name.lower().encode("ascii") for name in drop_request_headers}
        self._dropped = {NO_HEADERS.names: never}  # by the names of our own headers, which replace the client's
        self._pool = Pool(self._loop, max_idle=self._limits.pool_max_idle, max_idle_s=self._limits.pool_idle_s)
        self._active: set[Exchange] = set()
        self._heard: dict[Address, float] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_s = self._limits.sweep_s
        self._closed = False

    def configure(self, limits: Limits) -> None:
        """For the requests that come from now on; those of idle connections stay as they are."""
        self._limits = limits
        self._sweep_s = limits.sweep_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def carry(
        self, client: Client, address: Address, body: Payload, instructions: Instructions
    ) -> Coroutine[Any, Any, Carried]:
        """Sends the request to the instance at `address` and its reply to the client; `settle` comes after it.

        Raises UpstreamFailed or ClientGone while nothing of the reply has reached the client, and ValueError for a
        request that cannot be written as one (control characters).
        """
        transport = client.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        head = self._head(client, client.target, address, instructions.own, length_of(body))
        kind = Exchange if instructions.rename is None else RenamedExchange
        make = partial(kind, client, transport, instructions, self._loop)
        return self._carry(client, transport, address, head, body=body, make=make)

    def carry_on(
        self, stream: ClientStream, address: Address, target: str, body: Payload, instructions: Instructions
    ) -> Coroutine[Any, Any, Carried]:
        """As `carry`, for one part of a stream: what the instance sends is the stream's follower's to judge.

        The stream ends if the reply is whole. Else it stays open: the caller goes on with it, or ends it. A reply that
        is no stream passes unchanged, unless the client's stream has begun: then it raises NoStream.
        """
        if stream.transport.is_closing():
            raise ClientGone
        head = self._head(stream.client, target, address, instructions.own, length_of(body))
        make = partial(FollowedExchange, stream, instructions, self._loop)
        return self._carry(stream.client, stream.transport, address, head, body=body, make=make)

    async def _carry(
        self,
        client: Client,
        transport: asyncio.Transport,
        address: Address,
        head: bytes,
        *,
        body: Payload,
        make: Callable[[Connection], Exchange],
    ) -> Carried:
        transport.set_write_buffer_limits(high=self._limits.client_buffer_bytes)
        connection = self._pool.take(address)
        stale: UpstreamFailed | None = None
        while True:
            reused = connection is not None
            if connection is None:
                connection = await self._connect_again(client, address, stale)
            exchange = make(connection)
            try:
                await self._see_through(exchange, client, transport, head, body)
                return exchange.carried
            except UpstreamFailed as failure:
                if not (reused and exchange.stale):
                    raise
                connection, stale = None, failure  # closed while it was idle: says nothing about the instance

    async def settle(self, client: Client, carried: Carried) -> None:
        """Lets the next request of this connection wait until the client has read this reply, within bounds."""
        transport = client.transport
        if transport is None:
            return
        if carried.broken is not None and not carried.self_delimiting:
            reset(transport)
        elif client.writing_paused:
            with contextlib.suppress(ClientStalled):
                await drain(client, transport, self._limits.client_stall_s)

    def heard_at(self, address: Address) -> float | None:
        """When a reply from there was last seen to go on, within a sweep; None if that is unknown."""
        return self._heard.get(address)

    def abandon(self, address: Address, *, hung: bool = False, ended: bool = False) -> None:
        """The instance is silent, or hangs: those for whom another can begin anew fail with that.

        If it is `ended`, all those do with whom another can go on.
        """
        reason = "instance_hung" if hung else "instance_silent"
        for exchange in [one for one in self._active if one.address == address]:
            exchange.abandon(reason, begun=ended)

    def forget(self, address: Address) -> None:
        """The instance is gone: closes the idle connections to it."""
        self._pool.forget(address)
        self._heard.pop(address, None)

    async def close(self) -> None:
        """Ends what is under way and closes all connections to instances."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._pool.close()
        for exchange in list(self._active):
            exchange.cut("relay_closed")
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    # --- One attempt

    def _head(self, client: Client, target: str, address: Address, own: OwnHeaders, body_length: int) -> bytes:
        return request_head(
            client.method,
            target,
            address,
            client.header_lines(self._dropped_with(own.names)),
            own=own if not address.key else OwnHeaders(own.names, own.lines + _key_line(address.key)),
            body_length=body_length,
        )

    def _dropped_with(self, names: frozenset[bytes]) -> frozenset[bytes]:
        known = self._dropped.get(names)
        if known is None:
            known = self._dropped[names] = self._dropped[NO_HEADERS.names] | names
        return known

    async def _connect_again(self, client: Client, address: Address, stale: UpstreamFailed | None) -> Connection:
        """If nobody is there any more, the instance may have ended with the request, and not while it was idle."""
        try:
            return await self._connect(client, address)
        except UpstreamFailed as failure:
            if stale is None or failure.reason not in ("connect_refused", "connect_failed"):
                raise
        raise stale

    async def _connect(self, client: Client, address: Address) -> Connection:
        if self._closed:
            raise UpstreamFailed("relay_closed", retryable=False)
        shortage: OSError | None = None
        try:
            async with asyncio.timeout(self._limits.connect_s):
                while True:
                    try:
                        return await self._pool.open(address)
                    except OSError as error:
                        if not is_shortage(error):
                            raise
                        shortage = error
                    await asyncio.sleep(_SHORTAGE_S)
        except TimeoutError:
            if shortage is not None:
                raise UpstreamFailed("shortage", retryable=False, detail=str(shortage)) from None
            raise UpstreamFailed("connect_timeout", retryable=True) from None
        except (ConnectionRefusedError, FileNotFoundError) as error:  # the latter: of a Unix socket
            raise UpstreamFailed("connect_refused", retryable=True, detail=str(error)) from None
        except OSError as error:
            raise UpstreamFailed("connect_failed", retryable=True, detail=str(error)) from None
        except asyncio.CancelledError:
            if not _left(client):
                raise
            raise ClientGone from None

    async def _see_through(
        self, exchange: Exchange, client: Client, transport: asyncio.Transport, head: bytes, body: Payload
    ) -> None:
        """Returns once the reply has begun and is over; raises while nothing of it has reached the client."""
        self._watch(exchange)
        try:
            exchange.send(head, body)
            await exchange.reply()
        except asyncio.CancelledError:
            left = _left(client)
            exchange.cut("client_gone" if left else "cancelled")
            if not left:
                if exchange.failure is None and exchange.owns_client:
                    transport.abort()  # nothing else can be said on it any more
                raise
            if exchange.failure is not None:
                raise ClientGone from None
        except UpstreamFailed as failure:
            if failure.reason == "client_gone":
                raise ClientGone from None
            raise
        finally:
            self._active.discard(exchange)

    # --- Waiting times

    def _watch(self, exchange: Exchange) -> None:
        self._active.add(exchange)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        """One timer for all: nothing is set or cancelled per request or per read."""
        now = self._loop.time()
        for exchange in list(self._active):
            if exchange.check_time(now):
                self._heard[exchange.address] = now
        if len(self._heard) > _MOST_HEARD:  # more than a fleet has: some went on after they had been forgotten
            self._heard = {address: at for address, at in self._heard.items() if now - at < _HEARD_KEPT_S}
        self._pool.sweep()
        busy = bool(self._active) or len(self._pool) > 0
        self._sweeper = self._loop.call_later(self._sweep_s, self._sweep) if busy else None


@lru_cache(maxsize=256)
def _key_line(key: str) -> bytes:
    """What an instance wants to be shown, in place of a client's own credentials."""
    return own_headers((("Authorization", f"Bearer {key}"),)).lines


def _left(client: Client) -> bool:
    """Whether a cancellation of the handler means that the client left; if so it has been dealt with."""
    if not is_gone(client):
        return False
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
    return True
