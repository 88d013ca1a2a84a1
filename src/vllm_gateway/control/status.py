# SPDX-License-Identifier: Apache-2.0
"""The shape of `GET /gateway/status`: what operators and the status command read."""

from dataclasses import dataclass
from typing import Literal

from vllm_gateway.scheduling import Decision

Health = Literal["healthy", "suspect", "sick", "ejected"]


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """Memory in MiB. `used`: by everyone, as NVML shows it; `reserved`: promised to our instances.

    `shared_memory`: it is the machine's, and what its programs use counts as used.
    """

    id: str
    index: int
    name: str
    total_mib: int
    reserved_mib: int
    used_mib: int
    foreign_mib: int
    shared_memory: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The machine's memory in MiB: what those that sleep, or have slept, hold of it, and what they may."""

    limit_mib: int
    held_mib: int


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """`last_used_s_ago`: seconds since its last request began or ended; null if it had none.

    `failures`: its requests that had no whole reply, or a 5xx. `health`: of a suspect, the health check is awaited; one
    that is sick runs and does not answer, or does not work; one that is ejected has failed too many requests.
    `trouble`: what is wrong with it, and what comes next. `reserved_mib` is less while it sleeps; `host_mib`: its part
    of `HostMemory.held_mib`. `waits_for`: what holds up its start or wake; null: nothing does.
    """

    name: str
    model: str
    number: int
    state: str
    why: str
    waits_for: str | None
    since_s: float
    address: str | None
    gpus: list[str]
    reserved_mib: int
    host_mib: int
    in_flight: int
    max_in_flight: int
    total: int
    failures: int
    health: Health
    trouble: str | None
    last_used_s_ago: float | None
    strategy: str
    external: bool


@dataclass(frozen=True, slots=True)
class ImagePull:
    """Of its layers, those that Docker has begun; null: nothing was told of any yet."""

    image: str
    since_s: float
    status: str | None
    percent: int | None
    done_mib: int | None
    total_mib: int | None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """`retries_denied`: failed requests that were not tried again because too many had been; `ejections`: of instances.

    `why_fewer`: why fewer instances run than are wanted; null if all run or nobody asked yet.
    `failure_id`: of the last instance that failed, as clients were told and the log has it; `log_tail`: its last lines.
    `retry_in_s`: until a start is tried again. `image_pull`: what has to come before one; null: nothing.
    """

    state: str
    wanted: int
    running: int
    starting: int
    sleeping: int
    queued: int
    served: int
    quarantined: int
    retries_denied: int
    ejections: int
    strategy: str
    pinned: bool
    aliases: list[str]
    why_fewer: str | None
    image_pull: ImagePull | None
    last_error: str | None
    failure_id: str | None
    log_tail: list[str]
    retry_in_s: float | None
    failures: int


@dataclass(frozen=True, slots=True)
class Status:
    """The whole page. `problems`: what is wrong with the machine; /health then says `degraded`."""

    version: str
    uptime_s: float
    runtime: str
    problems: list[str]
    parallel_model_config: dict[str, int]
    active_models_by_id: dict[str, list[str]]
    active_containers_by_name: dict[str, InstanceStatus]
    known_footprints_mib: dict[str, int]
    gpus: list[GpuStatus]
    host_memory: HostMemory
    models: dict[str, ModelStatus]


@dataclass(frozen=True, slots=True)
class DecisionsPage:
    """`GET /gateway/decisions?model=`: the newest first. Empty for a strategy that has no scores."""

    model: str
    strategy: str
    decisions: list[Decision]
