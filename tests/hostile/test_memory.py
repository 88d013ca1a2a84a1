# SPDX-License-Identifier: Apache-2.0
"""Crowds of unfinished heads cost a running gateway little, and the next crowd nothing more."""

import asyncio
import contextlib
from pathlib import Path

from tests.gateway import GatewayProcess, running_gateway
from tests.hostile.heads import HEAD
from tests.integration.test_gateway import config, model

CLIENTS = 100
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = HEALTH[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
LOCAL = HEAD.replace(b"Host: x", b"Host: localhost")
ENDLESS = LOCAL + b"".join(b"X-%d: %b\r\n" % (number, b"y" * 8000) for number in range(120))
NEARLY = ENDLESS[:60_000]
CROWDS = [before + head for before in (b"", HEALTH, UPGRADE) for head in (ENDLESS, NEARLY)]
MOST_MIB = 40
"""Of which 6 are the heads of 60,000 bytes; the rest is what the allocator keeps for the next ones."""


def resident_mib(gateway: GatewayProcess) -> float:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def refused(gateway: GatewayProcess, sent: bytes) -> bytes:
    """What a client is told that sends this and waits."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    said = b""
    with contextlib.suppress(ConnectionError):
        said = await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return said


async def test_heads_without_an_end_cost_little_and_are_all_refused(tmp_path: Path) -> None:
    bounds = {"head_timeout_s": 1}
    async with running_gateway(tmp_path, config(models={"a": model("a")}, server=bounds)) as gateway:
        await refused(gateway, b"hello\r\n\r\n")
        before = resident_mib(gateway)
        grown = []
        for sent in (*CROWDS, *CROWDS[1:3]):
            replies = await asyncio.gather(*(refused(gateway, sent) for _ in range(CLIENTS)))
            code = b'"head_too_large"' if sent.endswith(ENDLESS) else b'"head_timeout"'
            assert all(code in reply for reply in replies)
            grown.append(resident_mib(gateway) - before)
        assert max(grown) < MOST_MIB, grown
        assert max(grown[len(CROWDS) :]) < max(grown[: len(CROWDS)]) + 4, grown
        for outcome in ("head_too_large", "head_timeout"):
            await gateway.event("request_finished", outcome=outcome, count=CLIENTS * (len(CROWDS) // 2 + 1))
        assert len(gateway.events("request_finished", status=408)) == CLIENTS * (len(CROWDS) // 2 + 1), "once each"
