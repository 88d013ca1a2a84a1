# SPDX-License-Identifier: Apache-2.0
"""vLLM's command line: the options that change what the simulation does, and those that are taken and ignored."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

_IGNORED_SWITCHES = """
    --trust-remote-code --disable-log-requests --enable-log-requests --no-enable-log-requests --disable-log-stats
    --enable-chunked-prefill --no-enable-chunked-prefill --disable-custom-all-reduce --enable-lora
    --enable-server-load-tracking --disable-uvicorn-access-log --disable-frontend-multiprocessing --async-scheduling
    --no-async-scheduling --language-model-only --enable-expert-parallel --enable-reasoning --disable-fastapi-docs
    --disable-cascade-attn --enable-log-outputs --allow-credentials --calculate-kv-scales --skip-mm-profiling
    --enable-tokenizer-info-endpoint --disable-hybrid-kv-cache-manager
"""

_IGNORED_OPTIONS = """
    --dtype --tokenizer --tokenizer-mode --tokenizer-revision --revision --code-revision --download-dir
    --load-format --seed --swap-space --cpu-offload-gb --max-num-batched-tokens --pipeline-parallel-size
    --data-parallel-size --chat-template --chat-template-content-format --reasoning-parser
    --generation-config --override-generation-config --hf-overrides --hf-config-path --hf-token --kv-cache-dtype
    --limit-mm-per-prompt --mm-processor-kwargs --compilation-config --speculative-config --rope-scaling --rope-theta
    --uvicorn-log-level --root-path --ssl-keyfile --ssl-certfile --allowed-origins --response-role --max-loras
    --max-lora-rank --distributed-executor-backend --scheduling-policy --attention-backend --convert
    --default-chat-template-kwargs --additional-config --kv-transfer-config --kv-events-config --api-server-count
    --max-log-len --model-impl --stream-interval --otlp-traces-endpoint --max-cudagraph-capture-size
    --optimization-level --mm-processor-cache-gb --long-prefill-token-threshold --prefix-caching-hash-algo
    --structured-outputs-config --config-format --logits-processors --max-logprobs --profiler-config
"""

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}


@dataclass(frozen=True, slots=True)
class Arguments:
    """The options that matter here, under vLLM's names."""

    model: str
    served_model_names: tuple[str, ...]
    host: str
    port: int
    uds: str | None
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    tensor_parallel_size: int
    max_model_len: int
    max_num_seqs: int
    block_size: int
    enable_prefix_caching: bool
    enable_sleep_mode: bool
    enable_request_id_headers: bool
    enable_prompt_tokens_details: bool
    enable_auto_tool_choice: bool
    enforce_eager: bool
    shutdown_timeout_s: float
    api_keys: tuple[str, ...]
    pooling: bool
    transcription: bool
    adapters: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first served name: the one that replies and metrics carry."""
        return self.served_model_names[0]

    def replies_as(self, asked: object) -> str:
        """The name in the reply to a request for the model `asked`: its own, or its adapter's."""
        return asked if isinstance(asked, str) and asked in self.adapters else self.name


def human_number(text: str) -> int:
    """`8192`, `8k` (decimal) or `500M` (binary): how vLLM reads sizes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"Invalid integer value {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def _adapter_name(module: str) -> str:
    """Of `name=path`, or of the same as a JSON object."""
    return str(json.loads(module)["name"]) if module.startswith("{") else module.partition("=")[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm serve", allow_abbrev=False, description=__doc__)
    add = parser.add_argument
    add("model_tag", nargs="?", help="the model, as --model")
    add("--model", default="Qwen/Qwen3-0.6B")
    add("--served-model-name", nargs="+")
    add("--host", default="0.0.0.0")  # noqa: S104 - vLLM's own default
    add("--port", type=int, default=8000)
    add("--uds")
    add("--gpu-memory-utilization", type=_share, default=0.92)
    add("--kv-cache-memory-bytes", "--kv-cache-memory", type=human_number)
    add("--tensor-parallel-size", "-tp", type=int, default=1)
    add("--max-model-len", type=human_number, default=8192)
    add("--max-num-seqs", type=int, default=256)
    add("--block-size", type=int, default=16)
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    add("--enable-sleep-mode", action="store_true")
    add("--enable-request-id-headers", action="store_true")
    add("--enable-prompt-tokens-details", action="store_true")
    add("--enable-auto-tool-choice", action="store_true")
    add("--tool-call-parser")
    add("--enforce-eager", action="store_true")
    add("--shutdown-timeout", type=float, default=0.0)
    add("--api-key", nargs="+", default=[])
    add("--quantization", "-q")
    add("--runner", choices=("auto", "generate", "pooling", "draft"), default="auto")
    add("--task", default="auto")
    add("--lora-modules", nargs="+")
    for switch in _IGNORED_SWITCHES.split():
        add(switch, action="store_true", help=argparse.SUPPRESS)
    for option in _IGNORED_OPTIONS.split():
        add(option, help=argparse.SUPPRESS)
    return parser


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Exits with status 2 and argparse's message where an option is unknown or wrong, as vLLM does."""
    spelled = [
        re.sub(r"^--[^=]+", lambda option: option[0].replace("_", "-"), word) if word.startswith("--") else word
        for word in argv
    ]
    options = _parser().parse_args(spelled)
    model = options.model_tag or options.model
    lowered = model.lower()
    return Arguments(
        model=model,
        served_model_names=tuple(options.served_model_name or [model]),
        host=options.host,
        port=options.port,
        uds=options.uds,
        gpu_memory_utilization=options.gpu_memory_utilization,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        tensor_parallel_size=options.tensor_parallel_size,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        block_size=options.block_size,
        enable_prefix_caching=options.enable_prefix_caching,
        enable_sleep_mode=options.enable_sleep_mode,
        enable_request_id_headers=options.enable_request_id_headers,
        enable_prompt_tokens_details=options.enable_prompt_tokens_details,
        enable_auto_tool_choice=options.enable_auto_tool_choice and options.tool_call_parser is not None,
        enforce_eager=options.enforce_eager,
        shutdown_timeout_s=options.shutdown_timeout,
        api_keys=tuple(options.api_key),
        pooling=options.runner == "pooling" or options.task in ("embed", "embedding") or "embed" in lowered,
        transcription=options.task == "transcription" or "whisper" in lowered,
        adapters=tuple(map(_adapter_name, options.lora_modules or ())),
    )
