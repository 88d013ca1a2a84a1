# SPDX-License-Identifier: Apache-2.0
"""Guesses the footprint of a model that was never measured: a start needs a reservation before it can be measured."""

import json
import math
import re
from pathlib import Path

from vllm_gateway.files.plain import read_plain

WEIGHTS_FACTOR = 1.2
FIXED_MIB = 3072  # activation, CUDA graphs, the smallest useful KV cache
_MOST_BYTES = 64 << 20  # of an index of weights
WHOLE_CARD = 0.92  # vLLM's own default share

_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
_EIGHT_BITS = ("fp8", "int8", "w8a8", "w8a16", "8bit", "8-bit")
_FOUR_BITS = ("awq", "gptq", "int4", "w4a16", "4bit", "4-bit", "nvfp4", "mxfp4", "fp4")


def estimate_mib(repository: str, cache_dir: Path | None, tensor_parallel_size: int, gpu_total_mib: int) -> int:
    """The MiB that one instance will need on each of its GPUs: weights x 1.2 / tensor_parallel_size + 3072.

    The weights are the weight files of a local directory or of the Hugging Face cache, else the parameters that the
    name tells ("4b", "0.5B", "8x7b") x 2 bytes (1 for 8-bit, 0.6 for 4-bit quantization), else unknown: then it is the
    whole card (92 %). Where the weights fit the card, the estimate is at most the whole card.
    """
    assert tensor_parallel_size > 0, tensor_parallel_size
    whole_card = int(gpu_total_mib * WHOLE_CARD)
    size = _bytes_of_files(repository, cache_dir) or _bytes_by_name(repository)
    if size is None:
        return whole_card
    weights_mib = size / (1 << 20) / tensor_parallel_size
    estimate = math.ceil(weights_mib * WEIGHTS_FACTOR) + FIXED_MIB
    if weights_mib + FIXED_MIB / 3 <= whole_card:
        return min(estimate, whole_card)
    return estimate


def parameters_mib(repository: str, cache_dir: Path | None) -> int | None:
    """All of the model's weights, by their files or its name; None: nothing tells."""
    size = _bytes_of_files(repository, cache_dir) or _bytes_by_name(repository)
    return None if size is None else math.ceil(size / (1 << 20))


def _bytes_of_files(repository: str, cache_dir: Path | None) -> int | None:
    try:
        directory = _directory(repository, cache_dir)
        return None if directory is None else _weights_in(directory)
    except (OSError, ValueError):  # a cache of somebody else's may be unreadable; the name still tells something
        return None


def _directory(repository: str, cache_dir: Path | None) -> Path | None:
    """The directory that holds the model's files, if there is one on this machine."""
    local = Path(repository)
    if local.is_absolute():
        return local if local.is_dir() else None
    if cache_dir is None:
        return None
    folder = "models--" + repository.replace("/", "--")
    for root in (cache_dir / folder, cache_dir / "hub" / folder):
        snapshots = root / "snapshots"
        if not snapshots.is_dir():
            continue
        main = root / "refs" / "main"
        if main.is_file() and (named := snapshots / read_plain(main, 4096).decode().strip()).is_dir():
            return named
        if found := [path for path in snapshots.iterdir() if path.is_dir()]:
            return max(found, key=lambda path: path.stat().st_mtime)
    return None


def _weights_in(directory: Path) -> int | None:
    """Bytes of the weights; the index counts too, since a download may have been cut short."""
    for pattern, index in (
        ("*.safetensors", "model.safetensors.index.json"),
        ("*.bin", "pytorch_model.bin.index.json"),
    ):
        files = [path for path in directory.glob(pattern) if path.is_file() and path.name != "training_args.bin"]
        sharded = [path for path in files if not path.name.startswith("consolidated")]  # a second copy of the same
        size = sum(path.stat().st_size for path in sharded or files)
        if size := max(size, _indexed_bytes(directory / index)):
            return size
    return None


def _indexed_bytes(index: Path) -> int:
    try:
        total = json.loads(read_plain(index, _MOST_BYTES))["metadata"]["total_size"]
        return max(0, int(total))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0


def _bytes_by_name(repository: str) -> int | None:
    name = repository.rstrip("/").rsplit("/", 1)[-1].lower()
    sizes = [
        float(times or 1) * float(number) * (1e9 if unit == "b" else 1e6) for times, number, unit in _SIZE.findall(name)
    ]
    if not sizes or max(sizes) <= 0:
        return None
    return math.ceil(max(sizes) * _bytes_per_parameter(name))


def _bytes_per_parameter(name: str) -> float:
    if any(hint in name for hint in _EIGHT_BITS):
        return 1.0
    return 0.6 if any(hint in name for hint in _FOUR_BITS) else 2.0
