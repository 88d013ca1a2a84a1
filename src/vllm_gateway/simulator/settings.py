# SPDX-License-Identifier: Apache-2.0
"""The `SIM_*` variables as one frozen object: everything about the simulation that is not one of vLLM's arguments."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_gateway.simulator.gpu_memory import DEFAULT_DIRECTORY


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """One field a variable; the table in the package's docstring says what each means."""

    name: str
    load_s: float = 1.0
    profile_share: float = 0.3
    stop_s: float = 0.0
    wake_s: float = 0.1
    tokens_per_s: float = 200.0
    batch_slowdown: float = 0.02
    prefill_tokens_per_s: float = 20000.0
    ttft_s: float = 0.0
    weights_mib: int = 2048
    activation_mib: int = 256
    cuda_graph_mib: int = 128
    kv_mib_per_1k_tokens: float = 32.0
    start_check_always: bool = False
    faults: str = ""
    gpu_directory: str = DEFAULT_DIRECTORY
    developer_mode: bool = False
    api_key: str = ""
    keeps_responses: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, model: str, eager: bool) -> SimulationSettings:
        def number(variable: str, default: float) -> float:
            text = environment.get(variable, "")
            try:
                return float(text) if text else default
            except ValueError:
                raise SystemExit(f"{variable}={text!r} is not a number") from None

        return cls(
            name=environment.get("SIM_NAME") or socket.gethostname(),
            load_s=number("SIM_LOAD_S", 1.0),
            profile_share=number("SIM_PROFILE_SHARE", 0.3),
            stop_s=number("SIM_STOP_S", 0.0),
            wake_s=number("SIM_WAKE_S", 0.1),
            tokens_per_s=number("SIM_TOKENS_PER_S", 200.0),
            batch_slowdown=number("SIM_BATCH_SLOWDOWN", 0.02),
            prefill_tokens_per_s=number("SIM_PREFILL_TOKENS_PER_S", 20000.0),
            ttft_s=number("SIM_TTFT_S", 0.0),
            weights_mib=int(number("SIM_WEIGHTS_MIB", estimated_weights_mib(model))),
            activation_mib=int(number("SIM_ACTIVATION_MIB", 256)),
            cuda_graph_mib=0 if eager else int(number("SIM_CUDA_GRAPH_MIB", 128)),
            kv_mib_per_1k_tokens=number("SIM_KV_MIB_PER_1K_TOKENS", 32.0),
            start_check_always=environment.get("SIM_START_CHECK_ALWAYS", "0") not in ("", "0"),
            faults=environment.get("SIM_FAULTS", ""),
            gpu_directory=environment.get("SIMULATED_GPU_DIR") or DEFAULT_DIRECTORY,
            developer_mode=environment.get("VLLM_SERVER_DEV_MODE", "0") == "1",
            api_key=environment.get("VLLM_API_KEY", ""),
            keeps_responses=environment.get("VLLM_ENABLE_RESPONSES_API_STORE", "0") == "1",
        )


def estimated_weights_mib(model: str) -> int:
    """Two bytes a parameter, by the size in the model's name (`4b`, `0.5B`, `270m`); 2048 where it says none."""
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", os.path.basename(model.rstrip("/")).lower())
    if found is None:
        return 2048
    parameters = float(found[1]) * (1e9 if found[2] == "b" else 1e6)
    return round(parameters * 2 / 2**20)
