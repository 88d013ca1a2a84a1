# SPDX-License-Identifier: Apache-2.0
"""Starts simulated engines as real processes, waits for what they do, and ends every one of them with the test."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.waiting import LIMIT_S, until


class EngineProcess:
    """One engine; its port is the one that it chose itself."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log
        self._client: aiohttp.ClientSession | None = None

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def url(self) -> str:
        found = re.search(r"Starting vLLM server on (http://\S+)", self.log)
        assert found is not None, self.log
        return found[1]

    @property
    def client(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(self.url)
        return self._client

    async def says(self, text: str) -> None:
        """Waits for a line in its log, or for its end."""
        await until(lambda: text in self.log or self.process.returncode is not None)
        assert text in self.log, self.log

    async def ready(self) -> "EngineProcess":
        await self.says("Application startup complete.")
        return self

    async def exit_status(self) -> int:
        async with asyncio.timeout(LIMIT_S):
            return await self.process.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def faults(self, *texts: str) -> None:
        async with self.client.post("/sim/faults", json=list(texts)) as reply:
            assert reply.status == 200, await reply.text()

    async def complete(self, **options: Any) -> tuple[int, Any]:
        async with self.client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 5} | options) as reply:
            return reply.status, await reply.json()

    async def stream(self, **options: Any) -> aiohttp.ClientResponse:
        body = {"prompt": "hello", "max_tokens": 5000, "stream": True} | options
        return await self.client.post("/v1/completions", json=body)

    async def end(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


class Launcher:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[EngineProcess] = []

    async def start(self, *arguments: str, **environment: str | int | float) -> EngineProcess:
        """`environment`: SIM_ variables without their prefix, in lower case (load_s=0.1), and others in capitals."""
        log = self._directory / f"engine-{len(self._started)}.log"
        settings = {"load_s": 0.05, "tokens_per_s": 500, "name": f"engine-{len(self._started)}"} | environment
        variables = {name if name.isupper() else f"SIM_{name.upper()}": str(value) for name, value in settings.items()}
        variables.setdefault("SIMULATED_GPU_DIR", str(self._directory / "gpus"))
        with log.open("w", encoding="utf-8") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "vllm_gateway.simulator", "demo/m", *arguments, "--host=127.0.0.1", "--port=0",
                stdout=output, stderr=output, env=os.environ | variables,
            )  # fmt: skip
        started = EngineProcess(process, log)
        self._started.append(started)
        return started

    async def ready(self, *arguments: str, **environment: str | int | float) -> EngineProcess:
        return await (await self.start(*arguments, **environment)).ready()

    async def end(self) -> None:
        for engine in self._started:
            await engine.end()
