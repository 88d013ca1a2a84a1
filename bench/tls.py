# SPDX-License-Identifier: Apache-2.0
"""What TLS at the door costs: two fresh gateways in each pair, one with a certificate, under the same load at once.

    python -m bench.tls [--pairs 15]

As the ruler does it, but with a client that speaks TLS; only the gateway's CPU time counts.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from bench.machine import build_tools, choose_cores
from bench.measure import Bench, bench
from bench.paired import median_interval
from bench.processes import Address, CpuClock, NotServing, free_port, running
from bench.targets import Gateway

_CONNECTIONS, _ROUNDS, _A_ROUND = 32, 8, 8  # requests on each connection in a round
_STREAMS, _TOKENS_PER_S, _STREAMED_S = 64, 50, 5.0
_START_LIMIT_S = 60.0
_EVENT = re.compile(rb"^data: ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Door:
    """A gateway that serves; `tls` is None where it serves plain HTTP."""

    address: Address
    clock: CpuClock
    tls: ssl.SSLContext | None


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of CPU time: plain, with TLS."""

    request: list[tuple[float, float]] = field(default_factory=list)
    token: list[tuple[float, float]] = field(default_factory=list)
    handshake: list[tuple[float, float]] = field(default_factory=list)  # and a request


@contextmanager
def serving(bench: Bench, authority: trustme.CA | None) -> Iterator[Door]:
    folder = Path(tempfile.mkdtemp(prefix="tls-", dir=bench.folder))
    address = Address("127.0.0.1", free_port())
    launch = Gateway().launch(folder, address.port, bench.backends)
    tls = None
    if authority is not None:
        file = folder / "gateway.yaml"
        config = json.loads(file.read_text())
        config["server"]["tls"] = _files(authority, folder)
        file.write_text(json.dumps(config))
        tls = ssl.create_default_context()
        authority.configure_trust(tls)
    log = folder / "output.log"
    with running(launch.argv, cores=str(bench.cores.proxy), log=log, environment=launch.environment) as process:
        asyncio.run(_until_it_serves(address, tls))
        yield Door(address, CpuClock(process.pid), tls)


def _files(authority: trustme.CA, folder: Path) -> dict[str, str]:
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.touch(0o600)
    key.write_bytes(issued.private_key_pem.bytes())
    return {"certificate": str(certificate), "key": str(key)}


async def _until_it_serves(address: Address, tls: ssl.SSLContext | None) -> None:
    async with asyncio.timeout(_START_LIMIT_S):
        while True:
            with contextlib.suppress(OSError):
                async with Connections(address, tls, 1) as one:
                    return await one.ask(1)
            await asyncio.sleep(0.1)


class Connections:
    """Of clients, idle but for the requests that are asked for."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None, count: int, prompt: str = "x" * 1024) -> None:
        self._address, self._tls, self._count = address, tls, count
        body = json.dumps({"model": "bench", "messages": [{"role": "user", "content": prompt}]}).encode()
        self._request = _head(len(body)) + body
        self._open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> "Connections":
        for _ in range(self._count):
            self._open.append(await _connect(self._address, self._tls))
        return self

    async def __aexit__(self, *error: object) -> None:
        for _, writer in self._open:
            writer.transport.abort()

    async def ask(self, times: int) -> None:
        await asyncio.gather(*(self._ask(reader, writer, times) for reader, writer in self._open))

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, times: int) -> None:
        for _ in range(times):
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            if not head.startswith(b"HTTP/1.1 200 ") or length is None:
                raise NotServing(head.decode("latin-1"))
            await reader.readexactly(int(length[1]))


def _head(length: int) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )


async def _connect(address: Address, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(address.host, address.port, ssl=tls)


async def requests(pair: Sequence[Door]) -> tuple[float, float]:
    """Both in turn, a round each, in changing order."""
    took = [0.0, 0.0]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Connections(one.address, one.tls, _CONNECTIONS)) for one in pair]
        for client in clients:
            await client.ask(_A_ROUND)
        for number in range(2 * _ROUNDS):
            for side in (0, 1) if number % 2 else (1, 0):
                pair[side].clock.lap()
                await clients[side].ask(_A_ROUND)
                took[side] += pair[side].clock.lap()
    count = 2 * _ROUNDS * _A_ROUND * _CONNECTIONS
    return 1e6 * took[0] / count, 1e6 * took[1] / count


async def handshakes(pair: Sequence[Door]) -> tuple[float, float]:
    """A new connection for each request."""
    took = [0.0, 0.0]
    for side in (0, 1) * 100:
        pair[side].clock.lap()
        async with Connections(pair[side].address, pair[side].tls, 1) as one:
            await one.ask(1)
        took[side] += pair[side].clock.lap()
    return 1e4 * took[0], 1e4 * took[1]


async def tokens(pair: Sequence[Door]) -> tuple[float, float]:
    both = await asyncio.gather(*(_tokens(one) for one in pair))
    return both[0], both[1]


async def _tokens(door: Door) -> float:
    prompt = f"count={_TOKENS_PER_S * 60} rate={_TOKENS_PER_S} "
    body = json.dumps(
        {"model": "bench", "stream": True, "messages": [{"role": "user", "content": prompt + "x" * 1024}]}
    ).encode()
    seen = 0

    async def read(reader: asyncio.StreamReader) -> None:
        nonlocal seen
        while block := await reader.read(1 << 16):
            seen += len(_EVENT.findall(block))

    opened = [await _connect(door.address, door.tls) for _ in range(_STREAMS)]
    for _, writer in opened:
        writer.write(_head(len(body)) + body)
    reading = [asyncio.create_task(read(reader)) for reader, _ in opened]
    await asyncio.sleep(1.0)
    seen = 0
    door.clock.lap()
    began = time.monotonic()
    await asyncio.sleep(_STREAMED_S)
    cpu_s, wall_s, counted = door.clock.lap(), time.monotonic() - began, seen
    for _, writer in opened:
        writer.transport.abort()
    await asyncio.gather(*reading, return_exceptions=True)
    if counted < 0.9 * _STREAMS * _TOKENS_PER_S * wall_s:
        raise NotServing(f"only {counted} tokens in {wall_s:.1f} s")
    return 1e6 * cpu_s / counted


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tls", description="What TLS at the door costs.")
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    costs, authority = Costs(), trustme.CA()
    with bench(build_tools(), choose_cores(), rounds=1, seconds=1.0, say=_say) as house:
        for number in range(pairs):
            with contextlib.ExitStack() as stack:
                kinds = random.sample((None, authority), 2)
                doors = {kind: stack.enter_context(serving(house, kind)) for kind in kinds}
                pair = (doors[None], doors[authority])
                costs.request.append(asyncio.run(requests(pair)))
                costs.token.append(asyncio.run(tokens(pair)))
                costs.handshake.append(asyncio.run(handshakes(pair)))
            _say(f"pair {number + 1} of {pairs}")
    for name in ("request", "token", "handshake"):
        found: list[tuple[float, float]] = getattr(costs, name)
        plain, tls = (statistics.median(one[side] for one in found) for side in (0, 1))
        interval = median_interval([with_tls / without for without, with_tls in found])
        print(
            f"{name:<10} {plain:7.1f} us plain, {tls:7.1f} us with TLS; "
            f"ratio {interval.median:.2f} ({interval.low:.2f} - {interval.high:.2f})"
        )


if __name__ == "__main__":
    main()
