# SPDX-License-Identifier: Apache-2.0
"""Reads from a failed start's last lines how much GPU memory it would have needed."""

import math
import re
from collections.abc import Sequence

from vllm_gateway.fleet.runtimes.output import says_out_of_memory

_MORE = 1.25  # where the engine does not say how much is missing
_LEAST_MORE = 1.1  # the next start must not fail for a few MiB again
_GIB = 1024
_KV_CACHE = re.compile(
    r"\(([\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory \(([\d.]+) GiB\)"
)
_NO_KV_CACHE = "No available memory for the cache blocks"


def larger_footprint(mib: int, last_lines: Sequence[str]) -> int | None:
    """The MiB to try after a start with `mib` on each GPU that ended so; None: it did not end for want of its share.

    >>> larger_footprint(6000, ["ValueError: ... (4.0 GiB KV cache is needed, which is larger than the available "
    ... "KV cache memory (2.0 GiB)). Based on ..."])
    8048
    >>> larger_footprint(6000, ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."])
    7500
    """
    text = "\n".join(last_lines)
    if found := _KV_CACHE.search(text):
        missing = math.ceil((float(found[1]) - float(found[2])) * _GIB)
        return max(mib + missing, math.ceil(mib * _LEAST_MORE))
    if _NO_KV_CACHE in text or says_out_of_memory(last_lines):
        return math.ceil(mib * _MORE)
    return None
