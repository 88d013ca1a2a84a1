# SPDX-License-Identifier: Apache-2.0
"""Writes events as lines without ever making the event loop wait: a queue and one thread stand before the stream."""

import atexit
import contextlib
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import IO, Any, cast

import orjson
import structlog

from vllm_gateway.configuration.settings import Log
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.encodable import encodable
from vllm_gateway.telemetry.events import Event, Level
from vllm_gateway.telemetry.secrets import mask_urls
from vllm_gateway.telemetry.terminal import printable, say

_QUEUE_LIMIT = 100_000
_EARLY_LIMIT = 1_000
_BATCH = 4096
_GATHER_S = 0.02  # to wake the thread for each line would cost the event loop more than the line
_RANK = {level: rank for rank, level in enumerate(events.LEVELS)}
_SAID_BY_OTHERS = ("error", "problem", "problems", "traceback", "where")
"""Fields that hold texts of libraries, plug-ins and the machine, which may hold anything."""


class EventLogger(structlog.BoundLoggerBase):
    """Logs events of the table: `log.emit(events.INSTANCE_READY, instance="a-1", model="a")`."""

    def emit(self, event: Event, **fields: object) -> None:
        level = event.level
        if not _sink.enabled(level):
            return
        if _sink.strict and (problems := event.problems({**self._context, **fields})):
            raise ValueError("; ".join(problems))
        for name in _SAID_BY_OTHERS:
            if name in fields:
                fields[name] = _masked(fields[name])
        # Straight to the sink: structlog's chain of processors costs several times as much as the line.
        _sink.msg({"timestamp": timestamp(), "level": level, "event": event.name, **self._context, **fields})


def get_logger(**context: object) -> EventLogger:
    """A logger whose lines carry `context`; may be taken before `configure`."""
    logger = structlog.wrap_logger(_sink, processors=[], wrapper_class=EventLogger, cache_logger_on_first_use=True)
    return cast("EventLogger", logger.bind(**context))


def configure(log: Log, stream: IO[Any] | None = None, *, strict: bool = False) -> None:
    """Sends lines to `stream` (default: standard output). With `strict`, a field that the table lacks raises."""
    shutdown()
    stream = sys.stdout if stream is None else stream
    terminal = stream.isatty()
    console = log.format == "console" or (log.format == "auto" and terminal)
    _sink.open(_Writer(stream), log.level, _console(colours=terminal) if console else None, strict=strict)


def mask_with(mask: Callable[[str], str]) -> None:
    """What takes the known secrets out of a text: from now on no error of the gateway's own shows one."""
    _sink.mask = mask


def masked(text: str) -> str:
    return _sink.mask(text)


def write_line(line: bytes, level: Level = "info") -> None:
    """Writes a line that its caller has built already: one JSON object, without the line's end."""
    _sink.line(line, level)


def timestamp() -> str:
    now = time.time()
    second = int(now)
    return f"{_second(second)}.{int((now - second) * 1_000_000):06d}Z"


@lru_cache(maxsize=1)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def flush(timeout_s: float = 2.0) -> bool:
    """Waits until what was logged is written; False if that took too long."""
    return _sink.writer is None or _sink.writer.flush(timeout_s)


def shutdown(timeout_s: float = 2.0) -> None:
    """Writes what is left, waiting no longer than `timeout_s`; lines after it are kept for the next `configure`."""
    _sink.close(timeout_s)


def _console(*, colours: bool) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=24, sort_keys=False)


def _masked(value: object) -> object:
    if isinstance(value, str):
        return _sink.mask(value)
    return [_masked(one) for one in value] if isinstance(value, list | tuple) else value


class _OfLibraries(logging.Handler):
    """What libraries say by Python's own logging goes to standard error, as it does without any handler."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            say(_sink.mask(self.format(record)), sys.stderr)


def _shown(name: str, value: object) -> object:
    """What is no text, the renderer shows by its `repr`."""
    return printable(value, lines=name == "traceback") if isinstance(value, str) else value


def _text(value: object) -> str:
    return str(encodable(value))


class _Writer:
    """One daemon thread that takes lines from a queue and writes them in batches."""

    def __init__(self, stream: IO[Any]) -> None:
        self._stream = stream
        self._lines: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self._dropped = 0
        try:
            stream.flush()
            self._descriptor: int | None = stream.fileno()
        except (OSError, AttributeError):
            self._descriptor = None
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        if self._lines.qsize() >= _QUEUE_LIMIT:
            self._dropped += 1
            return
        if self._dropped:
            count, self._dropped = self._dropped, 0
            dropped = events.LOG_LINES_DROPPED
            fields = {"timestamp": timestamp(), "level": dropped.level, "event": dropped.name, "count": count}
            self._lines.put(orjson.dumps(fields) + b"\n")
        self._lines.put(line)

    def flush(self, timeout_s: float) -> bool:
        written = threading.Event()
        self._lines.put(written)
        return written.wait(timeout_s)

    def close(self, timeout_s: float) -> None:
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            batch: list[bytes] = []
            item = self._lines.get()
            if isinstance(item, bytes):
                time.sleep(_GATHER_S)
            while isinstance(item, bytes):
                batch.append(item)
                if len(batch) >= _BATCH or self._lines.empty():
                    break
                item = self._lines.get()
            with contextlib.suppress(OSError, ValueError):  # the reader is gone: serving goes on without a log
                self._write(b"".join(batch))
            if item is None:
                return
            if isinstance(item, threading.Event):
                item.set()

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            text = data.decode("utf-8", "replace")
            self._stream.write(data if "b" in getattr(self._stream, "mode", "") else text)
            self._stream.flush()
            return
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                select.select((), (self._descriptor,), (), 1.0)


class _Sink:
    """Where every logger's lines go; holds the first ones back until the configuration says where to."""

    def __init__(self) -> None:
        self.writer: _Writer | None = None
        self.mask: Callable[[str], str] = mask_urls
        self.strict = False
        self._rank = _RANK["info"]
        self._render: structlog.dev.ConsoleRenderer | None = None
        self._early: list[tuple[Level, bytes]] = []

    def enabled(self, level: Level) -> bool:
        return self.writer is None or _RANK[level] >= self._rank

    def open(
        self, writer: _Writer, level: Level, render: structlog.dev.ConsoleRenderer | None, *, strict: bool
    ) -> None:
        self.writer, self._rank, self._render, self.strict = writer, _RANK[level], render, strict
        early, self._early = self._early, []
        for line_level, line in early:
            self.line(line, line_level)

    def close(self, timeout_s: float) -> None:
        writer, self.writer, self.strict = self.writer, None, False
        if writer is not None:
            writer.close(timeout_s)

    def msg(self, fields: dict[str, Any]) -> None:
        if self._render is not None and self.writer is not None:
            self._put_console(fields)
        else:
            try:
                line = orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS)
            except Exception:  # an odd value may fail in its own way, and whoever logs has other things to do
                line = orjson.dumps(encodable(fields))
            self.line(line, fields["level"])

    def line(self, line: bytes, level: Level) -> None:
        if self.writer is None:
            if len(self._early) < _EARLY_LIMIT:
                self._early.append((level, line))
        elif _RANK[level] < self._rank:
            return
        elif self._render is not None:
            self._put_console(orjson.loads(line))
        else:
            self.writer.put(line + b"\n")

    def _put_console(self, fields: dict[str, Any]) -> None:
        if self.writer is not None and self._render is not None:
            known = {name: _shown(name, value) for name, value in fields.items() if value is not None}
            try:
                text = str(self._render(None, "msg", dict(known)))  # which it empties
            except Exception:  # whatever a value does when it is shown: a line is never lost
                text = str(self._render(None, "msg", {name: _text(value) for name, value in known.items()}))
            self.writer.put(text.encode("utf-8", "replace") + b"\n")

    def last_words(self) -> None:
        """At exit: a process that never came to `configure` still shows its warnings and errors."""
        self.close(2.0)
        for level, line in self._early:
            if _RANK[level] >= _RANK["warning"]:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(line.decode() + "\n")
        self._early = []


_sink = _Sink()
logging.lastResort = _OfLibraries(logging.WARNING)
atexit.register(_sink.last_words)
