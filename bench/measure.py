# SPDX-License-Identifier: Apache-2.0
"""Runs the rows: all targets serve, and each round takes one sample of each of them, in turn."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Load, LoadFailed
from bench.machine import WORK, Cores, Tools
from bench.processes import Address, NotServing, free_port, post_status, running, wait_until_ok
from bench.rows import Proxy, Row, Sample
from bench.targets import MODEL, Missing, Target

YARDSTICK = "nginx"
_ADDRESSES = 32  # of each of the two backend processes, so that 64 instances have an address each
_REPLY_BYTES = 600


@dataclass(slots=True)
class Measured:
    """What came of one row and one target."""

    samples: list[Sample] = field(default_factory=list)
    failed: str | None = None


@dataclass(slots=True)
class Results:
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    rows: dict[str, dict[str, Measured]] = field(default_factory=dict)


@contextmanager
def backends(tools: Tools, cores: Cores, folder: Path) -> Iterator[list[Address]]:
    """Two processes; the list alternates between them."""
    with contextlib.ExitStack() as stack:
        ports = [free_port(), free_port()]
        for port in ports:
            log = folder / f"backend-{port}.log"
            argv = [str(tools.backend), str(port), str(_ADDRESSES), str(_REPLY_BYTES)]
            process = stack.enter_context(running(argv, cores=cores.load_list, log=log))
            wait_until_ok(process, Address("127.0.0.1", port), "/health", 10, log)
        yield [Address(f"127.0.0.{number}", port) for number in range(1, _ADDRESSES + 1) for port in ports]


@contextmanager
def serving(target: Target, cores: Cores, folder: Path, behind: Sequence[Address]) -> Iterator[Proxy]:
    """The target, started and known to carry a request. Raises NotServing or Missing."""
    own = folder / target.name.replace(" ", "-")
    own.mkdir()
    address = Address("127.0.0.1", free_port())
    launch = target.launch(own, address.port, behind)
    log = own / "output.log"
    with running(launch.argv, cores=str(cores.proxy), log=log, environment=launch.environment) as process:
        wait_until_ok(process, address, launch.health, launch.start_limit_s, log)
        _wait_until_it_carries(address, MODEL if target.models == 1 else f"{MODEL}-1")
        yield Proxy(address, target.models, process.pid)


def _wait_until_it_carries(address: Address, model: str, limit_s: float = 30.0) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]}).encode()
    deadline = time.monotonic() + limit_s
    while (status := post_status(address, "/v1/chat/completions", body)) != 200:
        if time.monotonic() > deadline:
            raise NotServing(f"a chat completion gave {status or 'no answer'}")
        time.sleep(0.1)


def run(
    rows: Sequence[Row],
    targets: Sequence[Target],
    *,
    tools: Tools,
    cores: Cores,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Results:
    results = Results(rows={row.name: {} for row in rows})
    WORK.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=WORK)))
        behind = stack.enter_context(backends(tools, cores, folder))
        load = Load(tools, cores)
        proxies: dict[str, Proxy] = {}
        for target in targets:
            try:
                results.versions[target.name] = target.version()
                proxies[target.name] = stack.enter_context(serving(target, cores, folder, behind[:2]))
            except (Missing, NotServing) as error:
                results.missing[target.name] = str(error)
                say(f"{target.name}: {error}")
        for row in rows:
            _run_row(row, proxies, results.rows[row.name], load, rounds, seconds, say)
    return results


def _run_row(
    row: Row,
    proxies: dict[str, Proxy],
    measured: dict[str, Measured],
    load: Load,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> None:
    for name, proxy in proxies.items():
        measured[name] = Measured()
        _sample(row, name, proxy, measured[name], load, 1.0)  # to warm up
        measured[name].samples.clear()
    for number in range(rounds):
        names = list(proxies)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            _sample(row, name, proxies[name], measured[name], load, seconds)
        add_ratios({name: one.samples[number] for name, one in measured.items() if len(one.samples) > number})
        say(f"{row.name}: round {number + 1} of {rounds}")


def _sample(row: Row, name: str, proxy: Proxy, measured: Measured, load: Load, seconds: float) -> None:
    if measured.failed is not None:
        return
    try:
        measured.samples.append(row.sample(proxy, load, seconds))
    except LoadFailed as error:
        measured.failed = str(error)


def add_ratios(samples: dict[str, Sample]) -> None:
    """Of one round: what a unit of work cost, as a multiple of what it cost the yardstick a moment before or after."""
    yardstick = samples.get(YARDSTICK, {}).get("cpu_us")
    for sample in samples.values():
        if yardstick and "cpu_us" in sample:
            sample["x_nginx"] = sample["cpu_us"] / yardstick
