# SPDX-License-Identifier: Apache-2.0
"""vLLM's command line: what an instance of a model is started with."""

import hashlib
import math

import orjson

from vllm_gateway.configuration.settings import Model, Settings
from vllm_gateway.fleet.engines import vllm_sleep

_MEMORY_OPTIONS = ("--gpu-memory-utilization", "--kv-cache-memory-bytes", "--kv-cache-memory")
KEY_VARIABLE = "VLLM_API_KEY"
_READABLE_STEPS = 10_000  # vLLM takes the share as a decimal fraction; round down, never over the reservation


def image_of(model: Model, settings: Settings) -> str:
    """What the engine is: an image, or the command of the process runtime."""
    if settings.runtime == "process":
        return " ".join(settings.process.command)
    return model.image or settings.docker.image


def arguments(name: str, model: Model, *, share: float | None) -> tuple[str, ...]:
    """`share`: of each GPU's memory (0..1); None without GPUs. Configured memory options win over it."""
    found = [*_option("--model", str(model.repository)), *_option("--served-model-name", name)]
    if model.tensor_parallel_size > 1:
        found += ["--tensor-parallel-size", str(model.tensor_parallel_size)]
    own = {argument.split("=")[0] for argument in model.engine_arguments}
    if share is not None and not own.intersection(_MEMORY_OPTIONS):
        found += ["--gpu-memory-utilization", f"{math.floor(share * _READABLE_STEPS) / _READABLE_STEPS:g}"]
    if model.sleep != "off" and vllm_sleep.ARGUMENT not in own:
        found.append(vllm_sleep.ARGUMENT)
    return (*found, *model.engine_arguments)


def _option(name: str, value: str) -> tuple[str, ...]:
    """In two words, but for a value that would be taken for an option itself."""
    return (f"{name}={value}",) if value.startswith("-") else (name, value)


def environment(model: Model, settings: Settings) -> dict[str, str]:
    """Holds the token: never log it."""
    token = {"HF_TOKEN": settings.hf_token, "HUGGING_FACE_HUB_TOKEN": settings.hf_token} if settings.hf_token else {}
    sleep = vllm_sleep.ENVIRONMENT if model.sleep != "off" else {}
    return {**token, **model.environment, **sleep}


def own_key(model: Model) -> str:
    """The key that the configuration gives its engines; empty: none."""
    return model.environment.get(KEY_VARIABLE, "")


def spec_hash(name: str, model: Model, settings: Settings) -> str:
    """Of everything that the operator asked for: equal hashes are interchangeable.

    Nothing that only a new release adds is in it, and no key: an upgrade restarts no engine.
    """
    parts = [
        image_of(model, settings),
        arguments(name, model, share=None),
        sorted(environment(model, settings).items()),
        settings.docker.cache_dir,
        settings.docker.network,
        settings.docker.volumes,
    ]
    if address := model.engine_address or settings.engine_address:
        parts.append(address)
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:16]
