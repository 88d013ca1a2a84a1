# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: each is one kind of work, and takes one sample of what it costs a proxy."""

from dataclasses import dataclass
from typing import Protocol

from bench.load import Load
from bench.processes import Address, usage
from bench.results import Sample


@dataclass(frozen=True, slots=True)
class Proxy:
    """A target that serves. `pid` is None for the backend itself, whose own cost is not asked for."""

    address: Address
    models: int
    pid: int | None


class Row(Protocol):
    """`fresh`: each sample needs a process that has done nothing before."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def fresh(self) -> bool: ...

    def sample(self, proxy: Proxy, load: Load, seconds: float) -> Sample: ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Requests with a whole reply, as fast as they are answered."""

    name: str
    title: str
    body_bytes: int
    connections: int = 32
    fresh: bool = False

    def sample(self, proxy: Proxy, load: Load, seconds: float) -> Sample:
        before = _cpu_s(proxy)
        result = load.plain(
            proxy.address,
            body_bytes=self.body_bytes,
            connections=self.connections,
            seconds=seconds,
            models=proxy.models,
        )
        cost = _cost(proxy, _cpu_s(proxy) - before, result.requests, result.seconds)
        return {**cost, "p99_ms": result.p99_ms}


@dataclass(frozen=True, slots=True)
class Streams:
    """Streams that are all open at once, at the pace at which an engine makes tokens."""

    name: str
    title: str
    streams: int
    rate: int
    open_s: float = 1.0
    fresh: bool = False

    def sample(self, proxy: Proxy, load: Load, seconds: float) -> Sample:
        with load.streams(
            proxy.address, streams=self.streams, rate=self.rate, open_s=self.open_s, seconds=seconds
        ) as streams:
            before = _cpu_s(proxy)
            streams.wait()
            cpu_s = _cpu_s(proxy) - before
            result = streams.result()
        return {
            **_cost(proxy, cpu_s, result.tokens, result.seconds),
            "tokens_per_read": result.tokens / result.reads,
            "delay_p50_ms": result.delay_p50_ms,
            "delay_p99_ms": result.delay_p99_ms,
            "gap_p99_ms": result.gap_p99_ms,
            "first_byte_p50_ms": result.first_byte_p50_ms,
            "first_byte_p99_ms": result.first_byte_p99_ms,
        }


@dataclass(frozen=True, slots=True)
class Memory:
    """What the process grows by while it holds many slow streams."""

    name: str
    title: str
    streams: int
    fresh: bool = True

    def sample(self, proxy: Proxy, load: Load, seconds: float) -> Sample:
        if proxy.pid is None:
            return {}
        idle_kib = usage(proxy.pid).rss_kib
        with load.streams(
            proxy.address, streams=self.streams, rate=1, open_s=self.streams / 1000, seconds=1.0
        ) as streams:
            streams.wait()
            open_kib = usage(proxy.pid).rss_kib
        return {"kib_per_stream": (open_kib - idle_kib) / self.streams, "idle_mib": idle_kib / 1024}


def _cpu_s(proxy: Proxy) -> float:
    return usage(proxy.pid).cpu_s if proxy.pid else 0.0


def _cost(proxy: Proxy, cpu_s: float, units: int, seconds: float) -> Sample:
    per_s = {"per_s": units / seconds}
    return {"cpu_us": 1e6 * cpu_s / units, "busy": cpu_s / seconds, **per_s} if proxy.pid else per_s


PLAIN = (
    Plain("plain_1k", "plain request, 1 KiB prompt, 600-byte reply, 32 connections", 1 << 10),
    Plain("plain_64k", "the same with a 64 KiB prompt", 64 << 10),
    Plain("plain_1m", "the same with a 1 MiB prompt", 1 << 20),
)
STREAMS = Streams("streams_384", "384 streams of 50 tokens/s", 384, 50)
MEMORY = Memory("streams_2000", "2,000 open streams", 2000)
FLAT = Plain("flat", "plain request, 1 KiB prompt, by the number of instances and models", 1 << 10)
QUICK: tuple[Row, ...] = (*PLAIN, STREAMS)
ALL_PROXIES: tuple[Row, ...] = (*QUICK, MEMORY)
