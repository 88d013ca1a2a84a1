# SPDX-License-Identifier: Apache-2.0
"""Log lines in vLLM's form, so that whoever reads an engine's log reads a simulated one just as well."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO


def info(text: str, *, source: str = "api_server.py:1", process: str = "EngineCore") -> None:
    _write(sys.stdout, "INFO", text, source, process)


def error(text: str, *, source: str = "core.py:936", process: str = "EngineCore") -> None:
    """Each line of the text gets its own prefix, as vLLM does with tracebacks."""
    for line in text.splitlines():
        _write(sys.stderr, "ERROR", line, source, process)


def progress(text: str) -> None:
    """A line of tqdm's progress bar."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def engine_failed(reason: str) -> None:
    """What vLLM writes when the engine core cannot start: the reason, then the API server's own complaint."""
    error("EngineCore failed to start.")
    error(f"Traceback (most recent call last):\n{reason}")
    progress(f"(APIServer pid={os.getpid()}) RuntimeError: Engine core initialization failed. "
             "See root cause above. Failed core proc(s): {}")  # fmt: skip


def _write(stream: TextIO, level: str, text: str, source: str, process: str) -> None:
    stamp = time.strftime("%m-%d %H:%M:%S")
    print(f"({process} pid={os.getpid()}) {level} {stamp} [{source}] {text}", file=stream, flush=True)
