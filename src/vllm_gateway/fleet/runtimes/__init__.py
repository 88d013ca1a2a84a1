# SPDX-License-Identifier: Apache-2.0
"""Where instances run: the one interface that docker and process runtimes share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.routing import Address


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything one instance is started with."""

    name: str  # vllm_server_gemma3-4B_instance_1
    model: str
    number: int
    image: str  # docker only
    arguments: tuple[str, ...]  # the engine's, without where it listens: the runtime adds that
    environment: Mapping[str, str]  # may hold secrets: never logged
    gpu_ids: tuple[str, ...]
    footprint_mib: int
    spec_hash: str
    on_port: bool = False  # it cannot listen on a Unix socket, or may not
    key: str = field(default="", repr=False)  # the engine is to ask for; empty: none


@dataclass(frozen=True, slots=True)
class Running:
    """A started instance. `handle` is the container id or the process id as text."""

    handle: str
    address: Address


@dataclass(frozen=True, slots=True)
class Found:
    """An instance of an earlier gateway that is still there."""

    running: Running | None  # None: it does not run any more
    handle: str
    name: str
    model: str
    number: int
    spec_hash: str
    gpu_ids: tuple[str, ...]
    footprint_mib: int
    launched_at: float | None = None  # seconds since the epoch; None: unknown
    problem: str | None = None  # why nobody will ever reach it, though it runs


@dataclass(frozen=True, slots=True)
class Exit:
    """How an instance ended: exit status (negative: signal), and its last lines of output."""

    code: int
    out_of_memory: bool = False  # of a GPU, as its last lines say
    short_of_memory: bool = False  # the kernel killed it for the container's or the machine's memory
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is, as far as is known by now: of its layers, those that have been begun."""

    status: str
    percent: int = 0
    done_mib: int = 0
    total_mib: int = 0


class StartError(Exception):
    """The instance could not be started at all (no image, no GPU driver, name taken). The text says what to do."""


class RuntimeDown(Exception):
    """The runtime does not answer, or cannot do now what it is asked (the Docker engine is away, or answers 5xx)."""


class Runtime(Protocol):
    async def open(self) -> None:
        """Connects. Raises RuntimeDown."""

    async def close(self) -> None:
        """Releases what the gateway holds; process runtime: ends every child. Containers stay."""

    @property
    def problem(self) -> str | None:
        """Why the runtime does not answer; None: it does, as far as is known."""

    @property
    def unanswered(self) -> list[str]:
        """What it has been asked, and has not answered in time; for people."""

    async def returned(self) -> None:
        """Returns when the runtime answers again after it has been away."""

    def reconfigure(self, settings: Settings) -> None:
        """For instances that start from now on."""

    async def find(self) -> list[Found]:
        """Every instance labelled as ours, running or not. Raises RuntimeDown."""

    async def fetch(self, image: str, told: Callable[[Progress], None]) -> None:
        """Returns when instances can be started from it, at once where no images are needed.

        `told` hears of all that moves. Cancelled, it stops. Raises StartError, RuntimeDown.
        """

    async def start(self, launch: Launch) -> Running:
        """Starts it, its image being there; returns when it runs (not yet ready). Leaves nothing if it fails.

        Raises StartError, RuntimeDown.
        """

    async def open_way(self, running: Running) -> None:
        """Lets the gateway reach an engine whose socket is another user's, once it is there. Raises RuntimeDown."""

    async def wait(self, handle: str) -> Exit:
        """Returns when the instance has ended, at once if it has already. Survives a restart of the Docker engine."""

    async def stop(self, handle: str, grace_s: float) -> None:
        """SIGTERM, after `grace_s` SIGKILL, then removes it. No error if it is gone already. Raises RuntimeDown."""

    async def remove(self, handle: str) -> None:
        """Removes what is left of an instance, killing it if it still runs. No error if it is gone already.

        Raises RuntimeDown.
        """

    async def pids(self, handle: str) -> frozenset[int]:
        """Host process ids of the instance, for the memory that NVML shows per process; empty if unknown.

        Raises RuntimeDown.
        """
