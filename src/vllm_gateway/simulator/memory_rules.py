# SPDX-License-Identifier: Apache-2.0
"""vLLM's rules for GPU memory, without any effect: what it demands at start, what is left for the KV cache, its words.

vLLM takes `--gpu-memory-utilization` x the GPU's memory whatever the model's size: what weights, activations and CUDA
graphs leave of that share becomes KV cache. All figures are per GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_gateway.simulator.gpu_memory import SimulatedGpu


class EngineStartError(Exception):
    """The engine core cannot start; the text is what vLLM writes, exception name included."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one engine needs on each of its GPUs besides the KV cache."""

    weights_mib: int
    activation_mib: int
    cuda_graph_mib: int
    kv_mib_per_1k_tokens: float

    @classmethod
    def of(
        cls, weights_mib: int, activation_mib: int, cuda_graph_mib: int, kv_mib_per_1k_tokens: float, gpus: int
    ) -> Footprint:
        """Weights and KV cache are split over the GPUs; activations and graphs come on each."""
        return cls(math.ceil(weights_mib / gpus), activation_mib, cuda_graph_mib, kv_mib_per_1k_tokens / gpus)

    @property
    def without_kv_mib(self) -> int:
        return self.weights_mib + self.activation_mib + self.cuda_graph_mib

    def kv_tokens(self, kv_mib: int) -> int:
        return int(kv_mib / self.kv_mib_per_1k_tokens * 1024)

    def kv_mib(self, tokens: int) -> float:
        return tokens * self.kv_mib_per_1k_tokens / 1024


def gib(mib: float) -> str:
    """As vLLM writes it: `21.67`, `8.0`."""
    return str(round(mib / 1024, 2))


def demanded_mib(gpu: SimulatedGpu, utilization: float) -> int:
    return math.ceil(gpu.total_mib * utilization)


def check_free_at_start(gpu: SimulatedGpu, position: int, utilization: float) -> None:
    """`position` is the GPU's number among those that the process sees, as in `cuda:0`."""
    demanded = demanded_mib(gpu, utilization)
    if gpu.free_mib < demanded:
        raise EngineStartError(
            f"ValueError: Free memory on device cuda:{position} ({gib(gpu.free_mib)}/{gib(gpu.total_mib)} GiB) on "
            f"startup is less than desired GPU memory utilization ({utilization}, {gib(demanded)} GiB). Decrease GPU "
            "memory utilization or reduce GPU memory used by other processes."
        )


def out_of_memory(gpu: SimulatedGpu, position: int, wanted_mib: int) -> EngineStartError:
    return EngineStartError(
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {gib(wanted_mib)} GiB. GPU {position} has a "
        f"total capacity of {gib(gpu.total_mib)} GiB of which {gib(gpu.free_mib)} GiB is free."
    )


def released_while_profiling(free_before_mib: int, free_now_mib: int) -> EngineStartError:
    return EngineStartError(
        f"AssertionError: Error in memory profiling. Initial free memory {gib(free_before_mib)} GiB, current free "
        f"memory {gib(free_now_mib)} GiB. This happens when other processes sharing the same container release GPU "
        "memory while vLLM is profiling during initialization. To fix this, ensure consistent GPU memory allocation "
        "or isolate vLLM in its own container."
    )


def check_kv_cache(footprint: Footprint, kv_mib: int, max_model_len: int) -> None:
    """Is there room for at least one request of the greatest length?"""
    if kv_mib <= 0:
        raise EngineStartError(
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            "initializing the engine."
        )
    needed = footprint.kv_mib(max_model_len)
    if needed > kv_mib:
        raise EngineStartError(
            f"ValueError: To serve at least one request with the model's max seq len ({max_model_len}), "
            f"({gib(needed)} GiB KV cache is needed, which is larger than the available KV cache memory "
            f"({gib(kv_mib)} GiB)). Based on the available memory, the estimated maximum model length is "
            f"{footprint.kv_tokens(kv_mib) // 16 * 16}. Try increasing `gpu_memory_utilization` or decreasing "
            "`max_model_len` when initializing the engine."
        )
