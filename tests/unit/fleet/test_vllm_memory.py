# SPDX-License-Identifier: Apache-2.0
"""How much more memory an engine wants, in vLLM's own words."""

import pytest

from vllm_gateway.fleet.engines.vllm_memory import larger_footprint

TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len (131072), ({} GiB KV cache is needed, "
    "which is larger than the available KV cache memory (2.0 GiB)). Based on the available memory, the estimated "
    "maximum model length is 16384. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`."
)


@pytest.mark.parametrize(
    ("line", "mib"),
    [
        (TOO_LONG.format("4.0"), 12_048),
        (TOO_LONG.format("2.1"), 11_000),  # no less than a tenth more
        ("ValueError: No available memory for the cache blocks. Try increasing", 12_500),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", 12_500),
        ("ValueError: Free memory on device cuda:0 (3/80 GiB) on startup is less than desired", None),
        ("error: unrecognized arguments: --foo", None),
    ],
)
def test_what_to_try_next(line: str, mib: int | None) -> None:
    assert larger_footprint(10_000, ["INFO loading", line, "RuntimeError: Engine core failed."]) == mib
