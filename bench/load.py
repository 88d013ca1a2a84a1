# SPDX-License-Identifier: Apache-2.0
"""The load: wrk or counted requests of our own, our own reader for streams; what they report, as numbers."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from bench.machine import HERE, Cores, Tools
from bench.processes import Address


class LoadFailed(Exception):
    """Requests failed, so that their cost says nothing; the text says how."""


@dataclass(frozen=True, slots=True)
class PlainResult:
    requests: int
    seconds: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class StreamResult:
    seconds: float
    tokens: int
    reads: int
    delay_p50_ms: float
    delay_p99_ms: float
    gap_p99_ms: float
    first_byte_p50_ms: float
    first_byte_p99_ms: float


class Load:
    def __init__(self, tools: Tools, cores: Cores) -> None:
        self._tools = tools
        self._pin = ["taskset", "-c", cores.load_list]

    def plain(self, to: Address, *, body_bytes: int, connections: int, seconds: float, models: int = 1) -> PlainResult:
        wrk = [self._tools.wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s"]
        script = ["-s", str(HERE / "post.lua"), f"http://{to}/v1/chat/completions", "--", str(body_bytes), str(models)]
        done = subprocess.run(
            [*self._pin, *wrk, *script], capture_output=True, text=True, timeout=seconds + 120, check=False
        )
        if done.returncode != 0:
            raise LoadFailed(f"wrk: {done.stderr.strip()[-200:]}")
        return parse_plain(done.stdout)

    @contextmanager
    def counted(self, to: Address, *, body_bytes: int, connections: int) -> Iterator["CountedRequests"]:
        """Connections that are there, and idle but for the requests that are asked for one by one."""
        with subprocess.Popen(
            [*self._pin, str(self._tools.requests), to.host, str(to.port), str(connections), str(body_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                _told(process.stdout)
                yield CountedRequests(process.stdin, process.stdout)
            finally:
                process.kill()

    @contextmanager
    def streams(
        self, to: Address, *, streams: int, rate: int, open_s: float, seconds: float
    ) -> Iterator["OpenStreams"]:
        """Streams that are all open; they stay so until the block ends."""
        numbers = [streams, rate, round(open_s * 1000), round(seconds * 1000), 1024]
        with subprocess.Popen(
            [*self._pin, str(self._tools.streams), to.host, str(to.port), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            try:
                _complete(_line(process.stdout), streams)
                yield OpenStreams(process.stdout, streams)
                process.stdin.close()
                process.wait(60)
            finally:
                if process.poll() is None:
                    process.kill()


class CountedRequests:
    def __init__(self, orders: IO[str], output: IO[str]) -> None:
        self._orders = orders
        self._output = output

    def ask(self, count: int) -> None:
        self._orders.write(f"{count}\n")
        self._orders.flush()

    def wait(self) -> None:
        """Until the last reply is there."""
        _told(self._output)


class OpenStreams:
    def __init__(self, output: IO[str], streams: int) -> None:
        self._output = output
        self._streams = streams
        self._counts: dict[str, Any] = {}

    def wait(self) -> None:
        """Until the measured time is over."""
        self._counts = _line(self._output)
        _complete(self._counts, self._streams)

    def result(self) -> StreamResult:
        return parse_streams(self._counts, _line(self._output))


def parse_plain(output: str) -> PlainResult:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise LoadFailed(f"wrk said: {output.strip()[-200:]}")
    found = json.loads(lines[-1])
    failures = {name: found[name] for name in ("refused", "broken", "bad_status", "late") if found[name]}
    if failures or not found["requests"]:
        raise LoadFailed(f"of {found['requests']} requests: {failures or 'none was answered'}")
    return PlainResult(found["requests"], found["seconds"], found["p99_us"] / 1000)


def parse_streams(counts: dict[str, Any], percentiles: dict[str, Any]) -> StreamResult:
    delay, gap, first = (percentiles[name] for name in ("delay_us", "gap_us", "first_byte_us"))
    return StreamResult(
        counts["seconds"],
        counts["tokens"],
        counts["reads"],
        delay["p50"] / 1000,
        delay["p99"] / 1000,
        gap["p99"] / 1000,
        first["p50"] / 1000,
        first["p99"] / 1000,
    )


def _line(output: IO[str]) -> dict[str, Any]:
    text = output.readline()
    if not text:
        raise LoadFailed("the load generator ended early")
    line: dict[str, Any] = json.loads(text)
    return line


def _told(output: IO[str]) -> None:
    if why := _line(output).get("why"):
        raise LoadFailed(why)


def _complete(counts: dict[str, Any], streams: int) -> None:
    if counts["failed"] or counts["open"] != streams:
        raise LoadFailed(
            f"{counts['open']} of {streams} streams open, {counts['failed']} failed: {counts['why'] or 'no reply'}"
        )
