# SPDX-License-Identifier: Apache-2.0
"""What a plain request costs in the gateway's own Python: the fast lane as it is served, and no sockets.

    python -m bench.path [--instances 1 64] [--requests 20000] [--rounds 5]

Clients and instances are in the same process and answer in the next turn of the event loop, so there is no kernel in
the figure. Compare two versions by running both, in turn.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median

import uvloop
from tests.integration.front.house import House, a_request, house

from vllm_gateway.relay import Limits
from vllm_gateway.relay.upstream import Connection
from vllm_gateway.routing import Address

CLIENTS = 32
FIRST_PORT = 20_000
WARM_UP = 3_000
REQUEST = a_request(b'{"model":"m","max_tokens":64,"messages":[{"role":"user","content":"%b"}]}' % (b"x" * 1024))
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 600\r\n\r\n" + b"y" * 600


class End(asyncio.Transport):
    """The other end of a connection: answers whatever is written to it."""

    def __init__(self, answer: Callable[[], object]) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self._answer = answer
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._answer()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._answer()

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def close(self) -> None:
        self._closing = True

    abort = close


def add_connections(gateway: House, port: int) -> None:
    """As many as there can be requests at once: none is ever opened."""
    loop, pool = asyncio.get_running_loop(), gateway.relay._pool
    for _ in range(CLIENTS):
        connection = Connection(pool, Address("127.0.0.1", port))
        connection.connection_made(End(partial(loop.call_soon, connection.data_received, REPLY)))
        pool.put(connection)


async def ask(gateway: House, requests: int) -> None:
    """One client: each request as soon as the reply to the last is there."""
    loop = asyncio.get_running_loop()
    visitor = gateway.door()
    replies = 0
    all_there = loop.create_future()

    def answer() -> None:
        nonlocal replies
        replies += 1
        if replies < requests:
            loop.call_soon(loop.call_soon, visitor.data_received, REQUEST)  # not before the last one is over
        else:
            all_there.set_result(None)

    end = End(answer)
    visitor.connection_made(end)
    visitor.data_received(REQUEST)
    await all_there
    end.close()
    visitor.connection_lost(None)


async def run(instances: int, requests: int, rounds: int) -> list[float]:
    """Microseconds of CPU time for each request, by round."""
    ports = range(FIRST_PORT, FIRST_PORT + instances)
    found = []
    async with house(*ports, max_in_flight=CLIENTS, limits=Limits(pool_idle_s=3600)) as gateway:
        gateway.api.journal.write = lambda line: None
        for port in ports:
            add_connections(gateway, port)
        for count in (WARM_UP, *[requests] * rounds):
            began = time.process_time()
            await asyncio.gather(*(ask(gateway, count // CLIENTS) for _ in range(CLIENTS)))
            found.append((time.process_time() - began) / count * 1e6)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.path", description="The gateway's own part of a request.")
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--requests", type=int, default=20_000, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for instances in given.instances:
        found = uvloop.run(run(instances, given.requests, given.rounds))
        print(f"{instances:>3} instances: {median(found):.1f} us ({min(found):.1f}-{max(found):.1f})", flush=True)


if __name__ == "__main__":
    main()
