# SPDX-License-Identifier: Apache-2.0
"""A new instance takes its share of the requests little by little: its caches are empty, and many requests wait."""

from collections.abc import Sequence

from vllm_gateway.scheduling.types import InstanceView


def spare_newcomers(instances: Sequence[InstanceView], now: float, ramp_s: float) -> Sequence[InstanceView]:
    """Without newcomers that have their share: as much of what the busiest has as they have of the ramp behind them.

    Everyone may have one request. Where all are new, all are equal.
    """
    parts = [min(1.0, max(0.0, now - one.ready_since) / ramp_s) for one in instances]
    if max(parts) < 1:
        return instances
    most = max(one.in_flight / one.weight for one in instances)
    return [
        one
        for one, part in zip(instances, parts, strict=True)
        if part == 1 or one.in_flight < max(1.0, most * one.weight * part)
    ]
