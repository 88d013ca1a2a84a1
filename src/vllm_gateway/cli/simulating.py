# SPDX-License-Identifier: Apache-2.0
"""`vllm-gateway simulate`: a trace under one strategy after another, on simulated engines."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import orjson

from vllm_gateway.replay.driver import Replay, Setting, World, replay
from vllm_gateway.replay.engine import EngineOptions
from vllm_gateway.replay.plot import PlotError, plot, require_matplotlib
from vllm_gateway.replay.report import Summary, summary, table
from vllm_gateway.replay.trace import Trace, TraceError, read_trace
from vllm_gateway.scheduling import Scheduler, StrategyError, make_strategy
from vllm_gateway.telemetry.terminal import say

CACHE_TOKENS = 409_600  # what a GPU with 80 GB has left beside an 8B model, at 128 KiB a token
EXIT_BAD_ARGUMENTS = 2


def simulate(arguments: argparse.Namespace) -> int:
    try:
        if arguments.plot is not None:
            require_matplotlib()
        if arguments.strategies_dir is not None and not arguments.strategies_dir.is_dir():
            raise StrategyError(f"--strategies-dir: {arguments.strategies_dir} is not a directory")
        builds = {name: _build(name, arguments.strategies_dir) for name in arguments.strategy}
        trace = read_trace(arguments.trace, arguments.model).first(arguments.limit)
    except (TraceError, StrategyError, PlotError, OSError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        say(f"vllm-gateway simulate: {text}", sys.stderr)
        return EXIT_BAD_ARGUMENTS
    replays = {}
    for name, build in builds.items():
        try:
            replays[name] = replay(trace, build, _setting(arguments, trace))
        except Exception as error:
            say(f"vllm-gateway simulate: strategy {name!r} failed: {error!r}", sys.stderr)
            return 1
    return _show(replays, arguments)


def _build(name: str, directory: Path | None) -> Callable[[World], Scheduler]:
    make = partial(make_strategy, name, directory)
    make()  # a name or a file that is wrong is said before anything runs
    return lambda world: make(clock=world.clock, random=world.random)


def _setting(arguments: argparse.Namespace, trace: Trace) -> Setting:
    blocks = arguments.cache_blocks or max(1, CACHE_TOKENS // trace.block_tokens)
    engine = EngineOptions(cache_blocks=blocks, block_tokens=trace.block_tokens)
    return Setting(arguments.instances, engine, speed=arguments.speed, seed=arguments.seed)


def _show(replays: dict[str, Replay], arguments: argparse.Namespace) -> int:
    summaries = [summary(name, one) for name, one in replays.items()]
    if arguments.json:
        say(orjson.dumps([_rounded(one) for one in summaries], option=orjson.OPT_INDENT_2).decode())
    else:
        say(table(summaries))
    if refused := summaries[0].refused:
        text = f"{refused} requests are longer than an instance's cache and were left out (--cache-blocks)."
        say(text, sys.stderr)
    if arguments.plot is not None:
        try:
            plot(replays, arguments.plot)
        except (OSError, ValueError) as error:
            say(f"vllm-gateway simulate: {arguments.plot} cannot be written: {error}", sys.stderr)
            return 1
    return 0


def _rounded(one: Summary) -> dict[str, object]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(one).items()}
