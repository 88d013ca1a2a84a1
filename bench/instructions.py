# SPDX-License-Identifier: Apache-2.0
"""Instructions of the gateway's own part of a request (`bench.path`): a count, and not a time.

By `perf stat` where the machine counts them, else by valgrind's callgrind. A run of many requests less one of few
leaves out the start.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.checkouts import Checkout
from bench.machine import WORK, CannotMeasure, Cores

_FEW, _MANY = 1_000, 5_000
_LIMIT_S = 1_800.0


@dataclass(frozen=True, slots=True)
class Counter:
    """A program that runs another one and says how many instructions it took."""

    argv: Sequence[str]
    count: Callable[[str], int]


def per_request(checkouts: Sequence[Checkout], cores: Cores, say: Callable[[str], None]) -> list[float]:
    """Of each checkout. As many runs at once as there are cores: a count suffers less from neighbours than a time."""
    WORK.mkdir(exist_ok=True)
    for checkout in checkouts:
        _run([], checkout, _FEW)  # so that no counted run compiles modules
    with tempfile.TemporaryDirectory(prefix="instructions-", dir=WORK) as folder:
        counter = _counter(Path(folder))
        runs = [(checkout, requests) for checkout in checkouts for requests in (_FEW, _MANY)]
        say(f"{len(runs)} runs with {counter.argv[0]}, some minutes")
        with ThreadPoolExecutor(1 + len(cores.load)) as at_once:
            counts = list(at_once.map(lambda run: _count(counter, *run), runs))
    return [(many - few) / (_MANY - _FEW) for few, many in zip(counts[::2], counts[1::2], strict=True)]


def _counter(folder: Path) -> Counter:
    perf = Counter(["perf", "stat", "-x,", "-e", "instructions:u"], perf_count)
    if shutil.which("perf"):
        tried = subprocess.run([*perf.argv, "true"], capture_output=True, text=True, check=False)
        if tried.returncode == 0 and "<not supported>" not in tried.stderr:
            return perf
    if shutil.which("valgrind"):
        return Counter(["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/%p"], callgrind_count)
    raise CannotMeasure("perf cannot count instructions here, and valgrind is missing: apt-get install valgrind")


def perf_count(said: str) -> int:
    found = re.search(r"^(\d+),[^,]*,instructions", said, re.MULTILINE)
    if found is None:
        raise CannotMeasure(f"perf said: {said.strip()[-300:]}")
    return int(found[1])


def callgrind_count(said: str) -> int:
    found = re.search(r"Collected : (\d+)", said)
    if found is None:
        raise CannotMeasure(f"valgrind said: {said.strip()[-300:]}")
    return int(found[1])


def _count(counter: Counter, checkout: Checkout, requests: int) -> int:
    return counter.count(_run(counter.argv, checkout, requests))


def _run(under: Sequence[str], checkout: Checkout, requests: int) -> str:
    """What it said on its standard error."""
    path = ["-m", "bench.path", "--instances", "1", "--rounds", "1", "--requests", str(requests)]
    done = subprocess.run(
        ["setarch", "-R", *under, checkout.python, *path],
        cwd=checkout.folder,
        env={**os.environ, "PYTHONHASHSEED": "0"},  # the same order of sets and size of tables in every run
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise CannotMeasure(f"bench.path of {checkout.folder}: {done.stderr.strip()[-300:]}")
    return done.stderr
