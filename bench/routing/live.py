# SPDX-License-Identifier: Apache-2.0
"""The same on real processes: a piece of a trace through a real gateway to simulated engines, by the clients' clock."""

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import yaml

from vllm_gateway.replay.report import percentile
from vllm_gateway.replay.trace import Trace, TracedRequest
from vllm_gateway.simulator.tokenizer import encode

MODEL = "live"
SPEED = {"SIM_LOAD_S": "0.2", "SIM_TOKENS_PER_S": "75", "SIM_PREFILL_TOKENS_PER_S": "8000"}
LENGTH = ["--max-model-len", "65536"]
_START_LIMIT_S = 60.0
_REQUEST_LIMIT_S = 300.0
_WORDS = [
    word
    for word in ("the", "water", "stone", "paper", "river", "story", "engine", "letter")
    if len(encode(f" {word}")) == 1
]
_COUNTERS = re.compile(r"^vllm:prefix_cache_(queries|hits)_total\S* ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Result:
    strategy: str
    requests: int
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    total_p50_s: float
    total_p99_s: float
    per_s: float
    hit_rate: float  # by the engines' own counters
    served: list[int]  # by each instance


@dataclass(frozen=True, slots=True)
class Traffic:
    """`clients`: so many, each asking again once it is answered; None: as the trace's arrivals say, `speed` times."""

    speed: float
    clients: int | None = None
    streamed: bool = True


async def run(trace: Trace, strategies: Sequence[str], *, instances: int, traffic: Traffic) -> list[Result]:
    return [await _one(trace, strategy, instances=instances, traffic=traffic) for strategy in strategies]


async def _one(trace: Trace, strategy: str, *, instances: int, traffic: Traffic) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            _gateway(Path(folder), strategy, instances) as url,
            aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http,
        ):
            engines = await _engines(http, instances)
            loop = asyncio.get_running_loop()
            asks = iter([partial(_ask, http, body_of(one, trace.block_tokens, traffic)) for one in trace.requests])
            began = loop.time()
            if traffic.clients is None:
                coming = [_at(began + one.arrival_s / traffic.speed, next(asks)) for one in trace.requests]
            else:
                coming = [_in_turn(asks) for _ in range(traffic.clients)]
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one) for one in coming]
            took_s = loop.time() - began
            times = [time for task in asked for time in task.result()]
            counted = [await _counters(engine) for engine in engines]
            served = await _served(http)
    queries, hits = (sum(one[name] for one in counted) for name in ("queries", "hits"))
    first, total = (sorted(column) for column in zip(*times, strict=True))
    return Result(
        strategy,
        requests=len(times),
        ttft_p50_s=percentile(first, 50),
        ttft_p90_s=percentile(first, 90),
        ttft_p99_s=percentile(first, 99),
        total_p50_s=percentile(total, 50),
        total_p99_s=percentile(total, 99),
        per_s=len(times) / took_s,
        hit_rate=hits / max(1.0, queries),
        served=served,
    )


@asynccontextmanager
async def _gateway(folder: Path, strategy: str, instances: int) -> AsyncIterator[str]:
    """Its address; it ends with the block, and its engines with it."""
    config = {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {"source": "simulated", "devices": [{"name": "Simulated GPU", "memory_mib": 24_000}] * instances},
        "models": {
            MODEL: {
                "repository": "test/live-8b",
                "instances": instances,
                "environment": SPEED,
                "engine_arguments": LENGTH,
            }
        },
        "strategy": strategy,
        "engine_address": "socket",
        "state_dir": str(folder / "state"),
        "slow_start_s": 0,
        "memory_footprint_file": str(folder / "footprints.json"),
    }
    file = folder / "gateway.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "vllm_gateway.cli", "serve", "--config", str(file), "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    reader = None
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_START_LIMIT_S):
            line: dict[str, Any] = {}
            while line.get("event") != "gateway_ready":
                line = json.loads(await process.stdout.readline())
        reader = asyncio.create_task(process.stdout.read())
        yield line["address"]
    finally:
        process.terminate()
        await process.wait()
        if reader is not None:
            await reader


async def _engines(http: aiohttp.ClientSession, instances: int) -> list[str]:
    """The sockets of the instances, when all are ready."""
    async with asyncio.timeout(_START_LIMIT_S):
        async with http.post("/v1/completions", json={"model": MODEL, "prompt": "the", "max_tokens": 1}) as reply:
            await reply.read()
        while True:
            async with http.get("/gateway/status") as reply:
                page = await reply.json()
            ready = [one for one in page["active_containers_by_name"].values() if one["state"] == "ready"]
            if len(ready) == instances:
                return [one["address"] for one in ready]
            await asyncio.sleep(0.1)


async def _served(http: aiohttp.ClientSession) -> list[int]:
    async with http.get("/gateway/status") as reply:
        page = await reply.json()
    return [one["total"] for one in page["active_containers_by_name"].values()]


Times = tuple[float, float]  # seconds to the first token and to the last, from the moment of asking
Ask = Callable[[float], Coroutine[None, None, Times]]


async def _at(at: float, ask: Ask) -> list[Times]:
    await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
    return [await ask(at)]


async def _in_turn(asks: Iterator[Ask]) -> list[Times]:
    """One client: it takes the next as long as there is one."""
    return [await ask(asyncio.get_running_loop().time()) for ask in asks]


async def _ask(http: aiohttp.ClientSession, body: dict[str, Any], at: float) -> Times:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_REQUEST_LIMIT_S), http.post("/v1/completions", json=body) as reply:
        reply.raise_for_status()
        await reply.content.readany()
        first = loop.time() - at
        await reply.read()
    return first, loop.time() - at


def body_of(request: TracedRequest, block_tokens: int, traffic: Traffic) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": text_of(request, block_tokens),
        "max_tokens": max(1, request.output_tokens),
        "ignore_eos": True,
        "stream": traffic.streamed,
    }


def text_of(request: TracedRequest, block_tokens: int) -> str:
    """One word a token; the same words for the same block, and words of its own behind the last one."""
    parts = [_words(block, block_tokens) for block in request.blocks]
    tail = request.input_tokens - len(request.blocks) * block_tokens
    return "".join([*parts, _words(hash((request.arrival_s, request.blocks)), max(0, tail))])


def _words(seed: int, count: int) -> str:
    return " " + " ".join(Random(seed).choices(_WORDS, k=count)) if count else ""


async def _counters(socket: str) -> dict[str, float]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as engine,
        engine.get("http://localhost/metrics") as reply,
    ):
        return {name: float(value) for name, value in _COUNTERS.findall(await reply.text())}
