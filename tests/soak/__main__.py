# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.soak [SECONDS] [--seed N]`: exit status 0 if every request was answered once and nothing is left."""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.engines import engine_pids
from tests.faults.footprint import Held, held, resident_mib, unsettled
from tests.faults.requests import KINDS, Request
from tests.gateway import GatewayProcess, running_gateway
from tests.soak.load import TOKENS, Answers, Load
from tests.soak.trouble import Trouble
from tests.waiting import until

CLIENTS = 24
FOOTPRINT_MIB = 4000
WARM_UP = 0.25
"""The part of the time after which memory is expected to stay flat."""
GROWTH_MIB = 24
SETTLES_WITHIN_S = 60.0


@dataclass(slots=True)
class Verdict:
    """What the soak found; `problems` must be empty."""

    outcomes: Counter[str]
    trouble: Counter[str]
    warm_mib: float
    end_mib: float
    starts: int
    problems: list[str]


def configuration() -> dict[str, Any]:
    """Four places on two GPUs for six instances of four models: there is always one that has to make way."""
    environment = {"SIM_LOAD_S": "0.3", "SIM_WEIGHTS_MIB": "500", "SIM_TOKENS_PER_S": "200"}
    model = {"environment": environment, "footprint_mib": FOOTPRINT_MIB, "max_in_flight": 8}
    device = {"name": "Simulated GPU", "memory_mib": 2 * FOOTPRINT_MIB}
    return {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {"source": "simulated", "devices": [device] * 2, "margin_mib": 0, "min_resident_s": 2},
        "timeouts": {"first_byte_s": 5, "idle_s": 2, "client_s": 5},
        "models": {
            name: {"repository": f"test/{name}", "instances": instances, **model}
            for name, instances in {"one": 2, "two": 2, "three": 1, "four": 1}.items()
        },
    }


async def soak(seconds: float, seed: int) -> Verdict:
    randomness = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        async with running_gateway(Path(folder), configuration()) as gateway:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            async with aiohttp.ClientSession(gateway.url, connector=connector) as http:
                expected = Expected(await held(gateway))
                answers = await undisturbed(http)
                await settled(gateway)
                expected.one_engine(await held(gateway))
                load = Load(http, list(configuration()["models"]), answers, randomness)
                trouble = Trouble(gateway, randomness)
                warm_mib = await under_way(gateway, load, trouble, seconds)
            problems = [*load.bad, *await settled(gateway, expected)]
            end_mib = resident_mib(gateway.process.pid)
            if end_mib > warm_mib + GROWTH_MIB:
                problems.append(f"the gateway grew from {warm_mib:.0f} to {end_mib:.0f} MiB")
            problems += not_answered_once(gateway, load)
            starts = len(gateway.events("instance_starting"))
    return Verdict(load.outcomes, trouble.happened, warm_mib, end_mib, starts, problems)


async def under_way(gateway: GatewayProcess, load: Load, trouble: Trouble, seconds: float) -> float:
    """Returns the memory of the gateway when it was warm."""
    going_wrong = asyncio.create_task(trouble.run())
    until = asyncio.get_running_loop().time() + seconds
    clients = asyncio.gather(*(load.client(until) for _ in range(CLIENTS)))
    try:
        await asyncio.sleep(seconds * WARM_UP)
        warm_mib = resident_mib(gateway.process.pid)
        await clients
    finally:
        clients.cancel()
        going_wrong.cancel()
        await asyncio.gather(clients, going_wrong, return_exceptions=True)
    return warm_mib


async def undisturbed(http: aiohttp.ClientSession) -> Answers:
    answers = {}
    for kind in KINDS:
        for tokens in TOKENS:
            request = Request(http, "one", kind, tokens=tokens)
            await request.task
            answers[kind, tokens] = request.said.answer
    return answers


class Expected:
    """What an idle gateway holds with so many engines."""

    def __init__(self, empty: Held) -> None:
        self._empty = empty
        self._each: dict[str, float] = {}

    def one_engine(self, held_now: Held) -> None:
        numbers, empty = _numbers(held_now), _numbers(self._empty)
        self._each = {kind: (numbers[kind] - empty[kind]) / held_now.engines for kind in numbers}

    def left_over(self, held_now: Held) -> list[str]:
        numbers, empty = _numbers(held_now), _numbers(self._empty)
        expected = {kind: empty[kind] + held_now.engines * self._each.get(kind, 0) for kind in numbers}
        return [
            f"{numbers[kind]} {kind}, expected {expected[kind]:g}"
            for kind in numbers
            if numbers[kind] != expected[kind]
        ]


def _numbers(held_now: Held) -> Counter[str]:
    return Counter({"tasks": held_now.tasks, **{f"open files ({kind})": n for kind, n in held_now.files.items()}})


async def settled(gateway: GatewayProcess, expected: Expected | None = None) -> list[str]:
    """Waits until nothing starts, stops or is under way; what is wrong if that does not come."""
    wrong: list[str] = []

    async def is_settled() -> bool:
        nonlocal wrong
        found = unsettled(await gateway.status(), set(engine_pids(gateway.process.pid)), FOOTPRINT_MIB)
        found += expected.left_over(await held(gateway)) if expected else []
        wrong = found
        return not wrong

    with contextlib.suppress(TimeoutError):
        await until(is_settled, SETTLES_WITHIN_S)
    return wrong


def not_answered_once(gateway: GatewayProcess, load: Load) -> list[str]:
    """The gateway's log has every request once; one whose client left at once may have come to nobody's knowledge."""
    finished = Counter(line["request_id"] for line in gateway.events("request_finished"))
    wrong = {
        one: finished[one] for one in load.ids if finished[one] > 1 or (one in load.answered and not finished[one])
    }
    return [f"{one} was finished {times} times" for one, times in wrong.items()]


def table(verdict: Verdict) -> str:
    lines = ["requests by outcome"]
    lines += [f"  {count:>7}  {name}" for name, count in verdict.outcomes.most_common()]
    lines.append(f"trouble, {verdict.trouble.total()} times")
    lines += [f"  {count:>7}  {name}" for name, count in sorted(verdict.trouble.items())]
    lines.append(f"starts of instances  {verdict.starts}")
    lines.append(f"memory of the gateway  {verdict.warm_mib:.1f} MiB when warm, {verdict.end_mib:.1f} MiB at the end")
    lines += [f"PROBLEM {problem}" for problem in verdict.problems]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=600.0)
    parser.add_argument("--seed", type=int, help="repeats the same choices (not the same timing)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 16)
    print(f"soak for {arguments.seconds:g} s, seed {seed}", flush=True)
    verdict = asyncio.run(soak(arguments.seconds, seed))
    print(table(verdict))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main())
