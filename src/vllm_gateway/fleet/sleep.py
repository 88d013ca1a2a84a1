# SPDX-License-Identifier: Apache-2.0
"""What an instance takes while it sleeps, on its GPUs and of the machine's memory, and whether it may at all."""

import math

from vllm_gateway.allocator.types import Policy
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import ModelState

# Before it was seen: contexts and graphs stay. Rather too little: one that holds more is measured, and planned anew;
# one that is never put to sleep because it seems to hold too much is never measured.
_SHARE = 0.1
_MOST_MIB = 1024
# Engines copy to pinned memory, which PyTorch takes in powers of two and keeps until the engine ends.
_PINNED = 1.4


def may_sleep(one: Instance, state: ModelState, policy: Policy) -> bool:
    """Rather than be stopped: it will be woken as it is, and there is a place for what it copies."""
    sound = one.state is State.READY and not one.suspect and not one.external
    current = state.spec.sleeps and not state.removed and one.spec_hash == state.spec.spec_hash
    return sound and current and asleep_mib(one, state) < one.reserved_mib and has_a_place(one, state, policy)


def has_a_place(one: Instance, state: ModelState, policy: Policy) -> bool:
    """In the machine's memory, if everybody else made way there."""
    return host_mib(one, state) <= policy.host_mib


def asleep_mib(one: Instance, state: ModelState) -> int:
    """On each of its GPUs: as it was measured, else an estimate."""
    if state.asleep_mib is not None:
        return min(state.asleep_mib, one.reserved_mib)
    return min(math.ceil(one.reserved_mib * _SHARE), _MOST_MIB)


def host_mib(one: Instance, state: ModelState) -> int:
    """Of the machine's memory: its parameters, where they are known; else all that it gives back."""
    given_back = (one.reserved_mib - asleep_mib(one, state)) * len(one.gpu_ids)
    known = state.spec.parameters_mib
    return math.ceil(_PINNED * (given_back if known is None else min(known, given_back)))
