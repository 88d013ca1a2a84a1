# SPDX-License-Identifier: Apache-2.0
"""Where the gateway's time goes under load: samples of its Python stacks by py-spy."""

import contextlib
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable

from bench.load import LoadFailed
from bench.machine import WORK, CannotMeasure
from bench.measure import Bench
from bench.peers import environment
from bench.rows import Proxy, Row
from bench.targets import Gateway

_SHOWN = 30


def profile(bench: Bench, row: Row, gateway: Gateway) -> str:
    """Keeps the stacks in a file for flame graph viewers; returns the top of the list."""
    py_spy = environment("py-spy") / "bin/py-spy"
    if not py_spy.exists():
        raise CannotMeasure("py-spy is missing: make bench-profile installs it")
    stacks = WORK / f"profile-{row.name}.txt"
    with bench.serving(gateway) as proxy:
        options = ["--rate", "500", "--nonblocking", "--format", "raw", "--output", str(stacks)]
        duration = ["--duration", str(max(1, round(bench.seconds)))]
        load = threading.Thread(target=_quietly, args=(bench, row, proxy), name="load")
        load.start()
        pinned = ["taskset", "-c", bench.cores.load_list, str(py_spy), "record", "--pid", str(proxy.pid)]
        done = subprocess.run([*pinned, *options, *duration], capture_output=True, text=True, check=False)
        load.join()
    if done.returncode:
        raise CannotMeasure(f"py-spy: {done.stderr.strip()[-300:]}")
    return f"{top(stacks.read_text().splitlines())}\n\nStacks, for speedscope.app or flamegraph.pl: {stacks}"


def _quietly(bench: Bench, row: Row, proxy: Proxy) -> None:
    with contextlib.suppress(LoadFailed):
        row.sample(proxy, bench.load, bench.seconds + 2)


def top(stacks: Iterable[str]) -> str:
    """Of collapsed stacks (`outer;inner count`): the share of each function itself, and with what it calls."""
    itself: Counter[str] = Counter()
    within: Counter[str] = Counter()
    total = 0
    for line in stacks:
        path, _, count = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in path.split(";")]  # without line numbers
        total += int(count)
        itself[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    lines = [f"{'itself':>7} {'within':>7}  function"]
    for frame, times in itself.most_common(_SHOWN):
        lines.append(f"{times / total:7.1%} {within[frame] / total:7.1%}  {frame}")
    return "\n".join(lines)
