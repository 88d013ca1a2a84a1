# SPDX-License-Identifier: Apache-2.0
"""Loading: takes GPU memory step by step as vLLM does, keeps its rules, and writes its log lines on the way."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence

from vllm_gateway.simulator import log
from vllm_gateway.simulator.arguments import Arguments
from vllm_gateway.simulator.gpu_memory import Allocation, OutOfGpuMemoryError, SimulatedGpu, SimulatedGpus, visible_gpus
from vllm_gateway.simulator.memory_rules import (
    EngineStartError,
    Footprint,
    check_free_at_start,
    check_kv_cache,
    demanded_mib,
    gib,
    out_of_memory,
    released_while_profiling,
)
from vllm_gateway.simulator.settings import SimulationSettings

CPU_KV_CACHE_MIB = 4096
PROFILE_POLL_S = 0.02
SHARDS = 4


class EngineMemory:
    """The memory of one engine on its GPUs, by part: `weights`, `working` (activations, graphs) and `kv_cache`."""

    def __init__(self, gpus: SimulatedGpus, uuids: Sequence[str], name: str) -> None:
        self._gpus = gpus
        self._uuids = uuids
        self._name = name
        self._parts: dict[str, list[Allocation]] = {}

    @property
    def devices(self) -> list[SimulatedGpu]:
        return [self._gpus.gpu(uuid) for uuid in self._uuids]

    @property
    def held_mib(self) -> int:
        return sum(allocation.mib for part in self._parts.values() for allocation in part)

    def take(self, part: str, mib: int) -> None:
        """Takes `mib` on each GPU; raises EngineStartError with CUDA's words and takes nothing if one is full."""
        taken: list[Allocation] = []
        try:
            for uuid in self._uuids if mib > 0 else ():
                taken.append(self._gpus.take(uuid, mib, f"{self._name}-{part}"))  # noqa: PERF401 - kept on failure
        except OutOfGpuMemoryError as error:
            for allocation in taken:
                allocation.release()
            raise out_of_memory(error.gpu, list(self._uuids).index(error.gpu.uuid), mib) from None
        self._parts[part] = taken

    def release(self, *parts: str) -> dict[str, int]:
        """Gives these parts (all, if none is named) back; says what each held on each GPU."""
        released = {}
        for part in parts or tuple(self._parts):
            allocations = self._parts.pop(part, [])
            released[part] = allocations[0].mib if allocations else 0
            for allocation in allocations:
                allocation.release()
        return released


class Loader:
    """One start of the engine, from nothing to a KV cache."""

    def __init__(self, arguments: Arguments, settings: SimulationSettings) -> None:
        self._arguments = arguments
        self._settings = settings
        self._footprint = Footprint.of(
            settings.weights_mib,
            settings.activation_mib,
            settings.cuda_graph_mib,
            settings.kv_mib_per_1k_tokens,
            arguments.tensor_parallel_size,
        )
        self.memory: EngineMemory | None = None

    async def load(self) -> int:
        """Returns how many tokens the KV cache holds. Raises EngineStartError."""
        gpus = SimulatedGpus(self._settings.gpu_directory)
        if not gpus.exists:
            log.info(f"No simulated GPUs in {gpus.directory}: CPU mode, no GPU memory is taken.")
            await self._load_weights()
            await asyncio.sleep(self._profile_s)
            return self._log_kv_cache(CPU_KV_CACHE_MIB)
        self.memory = memory = EngineMemory(gpus, self._choose(gpus), self._settings.name)
        fixed = self._arguments.kv_cache_memory_bytes
        if fixed is None or self._settings.start_check_always:
            for position, gpu in enumerate(memory.devices):
                check_free_at_start(gpu, position, self._arguments.gpu_memory_utilization)
        at_start = memory.devices
        memory.take("weights", self._footprint.weights_mib)
        await self._load_weights()
        if fixed is None:
            kv_mib = min(await self._profile(memory, at_start))
            log.info(f"Available KV cache memory: {gib(kv_mib)} GiB", source="gpu_worker.py:491")
        else:
            kv_mib = math.ceil(fixed / 2**20)
            memory.take("working", self._footprint.activation_mib + self._footprint.cuda_graph_mib)
            await asyncio.sleep(self._profile_s)
            log.info(
                f"Initial free memory {gib(at_start[0].free_mib)} GiB, reserved {gib(kv_mib)} GiB memory for KV Cache "
                "as specified by kv_cache_memory_bytes config and skipped memory profiling. This does not respect the "
                "gpu_memory_utilization config.",
                source="gpu_worker.py:491",
            )
        check_kv_cache(self._footprint, kv_mib, self._arguments.max_model_len)
        memory.take("kv_cache", kv_mib)
        return self._log_kv_cache(kv_mib)

    @property
    def _profile_s(self) -> float:
        return self._settings.load_s * self._settings.profile_share

    def _choose(self, gpus: SimulatedGpus) -> list[str]:
        visible = visible_gpus(gpus.gpus(), os.environ)
        wanted = self._arguments.tensor_parallel_size
        if len(visible) < wanted:
            raise EngineStartError(
                f"ValueError: World size ({wanted}) is larger than the number of available GPUs ({len(visible)}) in "
                "this node."
            )
        for position, gpu in enumerate(visible[:wanted]):
            if gpu.error:
                raise EngineStartError(f"RuntimeError: CUDA error: device cuda:{position} is unavailable")
        return [gpu.uuid for gpu in visible[:wanted]]

    async def _load_weights(self) -> None:
        began = time.monotonic()
        log.info(f"Starting to load model {self._arguments.model}...", source="gpu_model_runner.py:4883")
        for shard in range(SHARDS + 1):
            share = shard / SHARDS
            log.progress(f"Loading safetensors checkpoint shards: {share:4.0%} Completed | {shard}/{SHARDS} "
                         f"[{time.monotonic() - began:05.2f}<00:00,  1.00it/s]")  # fmt: skip
            if shard < SHARDS:
                await asyncio.sleep((self._settings.load_s - self._profile_s) / SHARDS)
        log.info(
            f"Model loading took {gib(self._footprint.weights_mib)} GiB memory and "
            f"{time.monotonic() - began:.6f} seconds",
            source="gpu_model_runner.py:5306",
        )

    async def _profile(self, memory: EngineMemory, at_start: Sequence[SimulatedGpu]) -> list[int]:
        """The memory left for the KV cache on each GPU, in MiB. Nobody else may give memory back meanwhile."""
        working_mib = self._footprint.activation_mib + self._footprint.cuda_graph_mib
        expected = [gpu.free_mib - working_mib for gpu in memory.devices]
        memory.take("working", working_mib)
        free = expected
        ends = time.monotonic() + self._profile_s
        while time.monotonic() < ends:
            await asyncio.sleep(min(PROFILE_POLL_S, self._profile_s))
            free = [gpu.free_mib for gpu in memory.devices]
            for before, now in zip(expected, free, strict=True):
                if now > before:
                    raise released_while_profiling(before, now)
        left = []
        for position, (gpu, before, now) in enumerate(zip(at_start, expected, free, strict=True)):
            demanded = demanded_mib(gpu, self._arguments.gpu_memory_utilization)
            # What another process took during the profile looks like this engine's own.
            consumed = self._footprint.without_kv_mib + before - now
            left.append(demanded - consumed)
            if position == 0:
                self._log_profile(gpu, demanded, consumed, left[0])
        return left

    def _log_profile(self, start: SimulatedGpu, demanded: int, consumed: int, left: int) -> None:
        footprint = self._footprint
        fixed = consumed - footprint.activation_mib - footprint.cuda_graph_mib
        log.info(
            f"Free memory on device ({gib(start.free_mib)}/{gib(start.total_mib)} GiB) on startup. Desired GPU memory "
            f"utilization is ({self._arguments.gpu_memory_utilization}, {gib(demanded)} GiB). Actual usage is "
            f"{gib(fixed)} GiB for consumed memory (weights + non-torch), {gib(footprint.activation_mib)} GiB for peak "
            f"activation, and {gib(footprint.cuda_graph_mib)} GiB for CUDAGraph memory. Replace gpu_memory_utilization "
            f"config with `--kv-cache-memory={max(0, left) * 2**20}` ({gib(max(0, left))} GiB) to fit into requested "
            "memory.",
            source="gpu_worker.py:640",
        )

    def _log_kv_cache(self, kv_mib: int) -> int:
        tokens = self._footprint.kv_tokens(kv_mib) // self._arguments.block_size * self._arguments.block_size
        longest = self._arguments.max_model_len
        log.info(f"GPU KV cache size: {tokens:,} tokens", source="kv_cache_utils.py:2235")
        log.info(
            f"Maximum concurrency for {longest:,} tokens per request: {tokens / longest:.2f}x",
            source="kv_cache_utils.py:2236",
        )
        return tokens
