# SPDX-License-Identifier: Apache-2.0
"""Runs the rows: all targets serve, and each round takes one sample of each of them, in turn."""

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.load import Load, LoadFailed
from bench.machine import WORK, Cores, Tools
from bench.processes import Address, NotServing, free_port, post_status, running, wait_until_ok
from bench.results import Measured, Results, Sample, add_ratios
from bench.rows import Proxy, Row
from bench.targets import MODEL, Direct, Missing, Target

_ADDRESSES = 32  # of each of the two backend processes, so that 64 instances have an address each
_REPLY_BYTES = 600
FAILURES = (Missing, NotServing, LoadFailed, OSError, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Bench:
    """Backends that serve, and what is needed to put a target in front of them and load on it."""

    cores: Cores
    load: Load
    folder: Path
    backends: Sequence[Address]
    rounds: int
    seconds: float
    say: Callable[[str], None]

    @contextmanager
    def serving(self, target: Target) -> Iterator[Proxy]:
        """The target, started and known to carry a request. Raises NotServing or Missing."""
        if isinstance(target, Direct):
            yield Proxy(self.backends[0], target.models, None)
            return
        own = Path(tempfile.mkdtemp(prefix=f"{target.name.replace(' ', '-')}-", dir=self.folder))
        address = Address("127.0.0.1", free_port())
        launch = target.launch(own, address.port, self.backends)
        log = own / "output.log"
        with running(launch.argv, cores=str(self.cores.proxy), log=log, environment=launch.environment) as process:
            wait_until_ok(process, address, launch.health, launch.start_limit_s, log)
            _wait_until_it_carries(address, MODEL if target.models == 1 else f"{MODEL}-1")
            yield Proxy(address, target.models, process.pid)


@contextmanager
def bench(tools: Tools, cores: Cores, *, rounds: int, seconds: float, say: Callable[[str], None]) -> Iterator[Bench]:
    WORK.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=WORK)))
        ports = [free_port(), free_port()]
        for port in ports:
            log = folder / f"backend-{port}.log"
            argv = [str(tools.backend), str(port), str(_ADDRESSES), str(_REPLY_BYTES)]
            process = stack.enter_context(running(argv, cores=cores.load_list, log=log))
            wait_until_ok(process, Address("127.0.0.1", port), "/health", 10, log)
        backends = [Address(f"127.0.0.{number}", port) for number in range(1, _ADDRESSES + 1) for port in ports]
        yield Bench(cores, Load(tools, cores), folder, backends, rounds, seconds, say)


def run(
    bench: Bench,
    rows: Sequence[Row],
    targets: Sequence[Target],
    yardstick: str,
    *,
    each: Callable[[Results], None] = lambda _: None,
) -> Results:
    """`each` gets the results so far after every row."""
    results = Results(rounds=bench.rounds, seconds=bench.seconds)
    there: list[Target] = []
    for target in targets:
        try:
            results.versions[target.name] = target.version()
            there.append(target)
        except FAILURES as error:
            results.missing[target.name] = str(error)
            bench.say(f"{target.name}: {error}")
    with contextlib.ExitStack() as stack:
        served: dict[str, _Served] = {}
        if not all(row.fresh for row in rows):
            for target in there:
                try:
                    served[target.name] = stack.enter_context(_Served(bench, target))
                except FAILURES as error:
                    results.missing[target.name] = str(error)
                    bench.say(f"{target.name}: {error}")
        for row in (row for row in rows if not row.fresh):
            sampler: dict[str, Sampler] = {name: partial(one.sample, row) for name, one in served.items()}
            results.rows[row.name] = _run_row(row, sampler, bench, yardstick)
            each(results)
    for row in (row for row in rows if row.fresh):
        measurable = [target for target in there if target.name not in results.missing]
        sampler = {target.name: _fresh_sampler(row, target, bench) for target in measurable}
        results.rows[row.name] = _run_row(row, sampler, bench, yardstick)
        each(results)
    return results


Sampler = Callable[[float], Sample]


class _Served(contextlib.ExitStack):
    """A target that serves beside the others; one that fails is stopped: what it is still at would delay them."""

    def __init__(self, bench: Bench, target: Target) -> None:
        super().__init__()
        self._load = bench.load
        self._proxy: Proxy | None = self.enter_context(bench.serving(target))

    def sample(self, row: Row, seconds: float) -> Sample:
        if self._proxy is None:
            raise NotServing("stopped, since it had failed")
        try:
            return row.sample(self._proxy, self._load, seconds)
        except FAILURES:
            self._proxy = None
            self.close()
            raise


def _fresh_sampler(row: Row, target: Target, bench: Bench) -> Sampler:
    def sample(seconds: float) -> Sample:
        with bench.serving(target) as proxy:
            return row.sample(proxy, bench.load, seconds)

    return sample


def _run_row(row: Row, samplers: dict[str, Sampler], bench: Bench, yardstick: str) -> dict[str, Measured]:
    """The order changes with each round, so that nobody always runs after the same neighbour."""
    measured = {name: Measured() for name in samplers}
    if not row.fresh:
        for name, sampler in samplers.items():  # to warm up
            _take(sampler, 1.0, measured[name])
            measured[name].samples.clear()
    names = list(samplers)
    for number in range(bench.rounds):
        turn = number % len(names) if names else 0
        for name in names[turn:] + names[:turn]:
            _take(samplers[name], bench.seconds, measured[name])
        add_ratios(
            {name: one.samples[number] for name, one in measured.items() if len(one.samples) > number}, yardstick
        )
        bench.say(f"{row.name}: round {number + 1} of {bench.rounds}")
    return measured


def _take(sampler: Sampler, seconds: float, measured: Measured) -> None:
    if measured.failed is not None:
        return
    try:
        measured.samples.append(sampler(seconds))
    except FAILURES as error:
        measured.failed = str(error)


def _wait_until_it_carries(address: Address, model: str, limit_s: float = 30.0) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]}).encode()
    deadline = time.monotonic() + limit_s
    while (status := post_status(address, "/v1/chat/completions", body)) != 200:
        if time.monotonic() > deadline:
            raise NotServing(f"a chat completion gave {status or 'no answer'}")
        time.sleep(0.1)
