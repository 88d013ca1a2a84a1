# SPDX-License-Identifier: Apache-2.0
"""Simulated engines in tests: asked at the address that the status page shows, or run beside the gateway."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp


def session(address: str) -> aiohttp.ClientSession:
    """For requests to the engine at `address`: the path of its socket, or its host and port."""
    if address.startswith("/"):
        return aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(address))
    return aiohttp.ClientSession(f"http://{address}")


async def set_faults(address: str, *faults: str) -> None:
    async with session(address) as http, http.post("/sim/faults", json=list(faults)) as reply:
        assert reply.status == 200


async def metrics(address: str) -> bytes:
    async with session(address) as http, http.get("/metrics") as reply:
        return await reply.read()


def children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def engine_pids(gateway_pid: int) -> dict[str, int]:
    """address -> pid of every simulated engine that is a child of the gateway."""
    return {address: pid for pid in children(gateway_pid) if (address := _address(pid))}


def _address(pid: int) -> str | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except FileNotFoundError:
        return None
    if "vllm_gateway.simulator" not in words:
        return None
    if "--uds" in words:
        return words[words.index("--uds") + 1]
    return f"127.0.0.1:{words[words.index('--port') + 1]}"


@asynccontextmanager
async def engines_of_somebody_else(model: str, count: int, environment: Mapping[str, str]) -> AsyncIterator[list[str]]:
    """Their URLs."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(_engine(model, f"{model}-{n}", environment)) for n in range(count)]


@asynccontextmanager
async def _engine(model: str, name: str, environment: Mapping[str, str]) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vllm_gateway.simulator", "--model", f"test/{model}", "--served-model-name", model),
        *("--host", "127.0.0.1", "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "SIMULATED_GPU_DIR": "/nowhere", **environment, "SIM_NAME": name},
    )
    assert process.stdout is not None
    listening: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(20):
            while (found := re.search(rb"server on (http://\S+)", await process.stdout.readline())) is None:
                pass
        listening = asyncio.create_task(_drain(process.stdout))
        yield found[1].decode()
    finally:
        process.kill()
        await process.wait()
        if listening is not None:
            await listening


async def _drain(output: asyncio.StreamReader) -> None:
    while await output.read(65536):
        pass
