# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: each is one kind of work, and takes one sample of what it costs a proxy."""

from dataclasses import dataclass
from typing import Protocol

from bench.load import Load
from bench.processes import Address, usage

Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A target that serves. `pid` is None for the backend itself, whose own cost is not asked for."""

    address: Address
    models: int
    pid: int | None

    def cpu_s(self) -> float:
        return usage(self.pid).cpu_s if self.pid else 0.0

    def rss_kib(self) -> int:
        return usage(self.pid).rss_kib if self.pid else 0


class Row(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def sample(self, proxy: Proxy, load: Load, seconds: float) -> Sample: ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Requests with a whole reply, as fast as they are answered."""

    name: str
    title: str
    body_bytes: int
    connections: int = 32

    def sample(self, proxy: Proxy, load: Load, seconds: float) -> Sample:
        before = proxy.cpu_s()
        result = load.plain(
            proxy.address,
            body_bytes=self.body_bytes,
            connections=self.connections,
            seconds=seconds,
            models=proxy.models,
        )
        cpu_s = proxy.cpu_s() - before
        return {
            "cpu_us": 1e6 * cpu_s / result.requests,
            "busy": cpu_s / result.seconds,
            "per_s": result.requests / result.seconds,
            "p99_ms": result.p99_ms,
        }


@dataclass(frozen=True, slots=True)
class Streams:
    """Streams that are all open at once, at the pace at which an engine makes tokens."""

    name: str
    title: str
    streams: int
    rate: int
    open_s: float = 1.0

    def sample(self, proxy: Proxy, load: Load, seconds: float) -> Sample:
        with load.streams(
            proxy.address, streams=self.streams, rate=self.rate, open_s=self.open_s, seconds=seconds
        ) as streams:
            before = proxy.cpu_s()
            streams.wait()
            cpu_s = proxy.cpu_s() - before
            result = streams.result()
        return {
            "cpu_us": 1e6 * cpu_s / result.tokens,
            "busy": cpu_s / result.seconds,
            "per_s": result.tokens / result.seconds,
            "tokens_per_read": result.tokens / result.reads,
            "delay_p50_ms": result.delay_p50_ms,
            "delay_p99_ms": result.delay_p99_ms,
            "gap_p99_ms": result.gap_p99_ms,
            "first_byte_p50_ms": result.first_byte_p50_ms,
            "first_byte_p99_ms": result.first_byte_p99_ms,
        }


PLAIN = (
    Plain("plain_1k", "plain request, 1 KiB prompt", 1 << 10),
    Plain("plain_64k", "plain request, 64 KiB prompt", 64 << 10),
    Plain("plain_1m", "plain request, 1 MiB prompt", 1 << 20),
)
STREAMS = Streams("streams_384", "384 streams of 50 tokens/s", 384, 50)
QUICK: tuple[Row, ...] = (*PLAIN, STREAMS)
