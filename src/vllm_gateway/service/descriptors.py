# SPDX-License-Identifier: Apache-2.0
"""How many files the process may have open, and how many of them clients' connections may be."""

import contextlib
import resource
from dataclasses import dataclass

from vllm_gateway.configuration.settings import Settings

_MOST = 1 << 20  # some systems say infinity
_RESERVE = 128  # Docker, GPUs, the log, files, a take-over, pages
_RESERVE_PER_INSTANCE = 8  # its output, its health, its metrics, its process


@dataclass(frozen=True, slots=True)
class Descriptors:
    limit: int
    """Of the process."""
    connections: int
    """So many at most may be clients'. Each may need another one to an engine, and the rest is for everything else."""
    needed: int
    """As the configuration has it: every place taken, every queue full."""


def raise_limit() -> int:
    """The soft limit becomes the hard one, if it may; systemd's soft one is 1024. Returns what holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)


def share_out(limit: int, settings: Settings) -> Descriptors:
    models = settings.models.values()
    instances = sum(len(model.endpoints) or model.instances for model in models)
    places = sum(
        (len(model.endpoints) or model.instances) * (model.max_in_flight or settings.max_in_flight) for model in models
    )
    reserve = _RESERVE + _RESERVE_PER_INSTANCE * instances
    free = max(limit - reserve, limit // 2)
    return Descriptors(
        limit,
        connections=max(free - places, free // 2),
        needed=reserve + 2 * places + settings.queue_size * len(settings.models),
    )
