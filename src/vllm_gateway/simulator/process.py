# SPDX-License-Identifier: Apache-2.0
"""The life of one simulated engine: load, open the port, serve, and what SIGTERM does at each of these times."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial

from vllm_gateway.simulator import log
from vllm_gateway.simulator.application import Application, Context
from vllm_gateway.simulator.arguments import Arguments
from vllm_gateway.simulator.engine import Capacity, Engine, EngineDeadError, Speed
from vllm_gateway.simulator.faults import Faults
from vllm_gateway.simulator.http_server import HttpServer
from vllm_gateway.simulator.memory_rules import EngineStartError
from vllm_gateway.simulator.routes import routes
from vllm_gateway.simulator.settings import SimulationSettings
from vllm_gateway.simulator.startup import Loader

FLUSH_S = 0.5
"""How long SIGTERM waits for the last events of the streams it ends."""


class SimulatedEngineProcess:
    def __init__(self, arguments: Arguments, settings: SimulationSettings) -> None:
        self._arguments = arguments
        self._settings = settings
        self._faults = Faults(settings.faults)
        self._loader = Loader(arguments, settings)
        self._stop = asyncio.Event()
        self._server: HttpServer | None = None
        self._relisten: asyncio.Future[None] | None = None

    async def run(self) -> int:
        """Returns the exit status. The memory on the GPUs is given back by then."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        log.info(f"vLLM API server version 0.32.0 (simulated), model {self._arguments.model}, as "
                 f"{', '.join(self._arguments.served_model_names)}", process="APIServer")  # fmt: skip
        try:
            tokens = await self._unless_stopped(self._load())
            if tokens is None:
                return 0
            await self._serve(tokens)
        except EngineStartError as error:
            log.engine_failed(str(error))
            return 1
        finally:
            if self._loader.memory is not None:
                self._loader.memory.release()
        return 0

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGTERM and self._faults.is_set("ignore_sigterm"):
            log.info("SIGTERM is ignored (simulated fault)", process="APIServer")
            return
        self._stop.set()

    async def _load(self) -> int:
        code = self._faults.value("crash_at_start", 1)
        if code is not None:
            log.error("Fatal Python error: Segmentation fault (simulated)")
            os._exit(int(code))
        if self._faults.is_set("value_error_at_start"):
            raise EngineStartError("ValueError: The model's architecture is not supported (simulated).")
        if self._faults.is_set("hang_during_load"):
            await asyncio.get_running_loop().create_future()
        after_s = self._faults.value("crash_during_load")
        crash: asyncio.TimerHandle | None = None
        if after_s is not None:
            crash = asyncio.get_running_loop().call_later(after_s, self._crash)
        tokens = await self._loader.load()
        if crash is not None:
            crash.cancel()
        return tokens

    def _crash(self) -> None:
        log.engine_failed("RuntimeError: CUDA error: an illegal memory access was encountered (simulated)")
        os._exit(1)

    async def _unless_stopped(self, loading: Coroutine[None, None, int]) -> int | None:
        """The result of the loading, or None if a signal came first."""
        task = asyncio.ensure_future(loading)
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            return task.result()
        task.cancel()
        return None

    async def _serve(self, kv_tokens: int) -> None:
        arguments, settings = self._arguments, self._settings
        engine = Engine(
            Speed(settings.tokens_per_s, settings.batch_slowdown, settings.prefill_tokens_per_s, settings.ttft_s),
            Capacity(arguments.max_num_seqs, kv_tokens, arguments.block_size, arguments.enable_prefix_caching),
        )
        context = Context(arguments, settings, engine, self._faults, self._loader.memory)
        context.on_faults_changed = partial(self._apply_faults, engine)
        application = Application(context, routes(context))
        self._server = HttpServer(arguments.host, arguments.port, application.handle, uds=arguments.uds)
        await self._server.listen()
        address = f"unix:{arguments.uds}" if arguments.uds else f"http://{arguments.host}:{self._server.port}"
        log.info(f"Starting vLLM server on {address}", process="APIServer")
        log.info("Application startup complete.", process="APIServer")
        await self._apply_faults(engine)
        steps = asyncio.create_task(engine.run())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({steps, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if steps.done():  # only by a bug in a step
            steps.result()
        await self._shut_down(context, application)
        steps.cancel()

    async def _shut_down(self, context: Context, application: Application) -> None:
        assert self._server is not None
        log.info("Shutting down", process="APIServer")
        context.draining = True
        if self._arguments.shutdown_timeout_s > 0:
            await _until(lambda: not context.engine.in_flight, self._arguments.shutdown_timeout_s)
        self._server.close()
        context.engine.fail(EngineDeadError())
        await _until(lambda: not application.in_flight, FLUSH_S)
        await asyncio.sleep(self._settings.stop_s)
        log.info("Application shutdown complete.", process="APIServer")

    async def _apply_faults(self, engine: Engine) -> None:
        engine.hang(self._faults.is_set("core_hangs"))
        await self._apply_refusal()

    async def _apply_refusal(self) -> None:
        """Stops or begins to listen as the faults say; `refuse_connections` may have a value, so many seconds."""
        assert self._server is not None
        if self._faults.is_set("full_backlog"):
            self._server.jam()
            return
        seconds = self._faults.value("refuse_connections")
        if seconds is None:
            await self._server.listen()
            return
        self._server.refuse()
        if seconds > 0:
            asyncio.get_running_loop().call_later(seconds, self._stop_refusing)

    def _stop_refusing(self) -> None:
        kept = [text for text in self._faults.texts() if not text.startswith("refuse_connections")]
        self._faults.replace(kept)
        self._relisten = asyncio.ensure_future(self._apply_refusal())


async def _until(condition: Callable[[], bool], limit_s: float) -> None:
    ends = time.monotonic() + limit_s
    while not condition() and time.monotonic() < ends:  # noqa: ASYNC110 - two conditions, polled at the end of a life
        await asyncio.sleep(0.01)
