# SPDX-License-Identifier: Apache-2.0
"""`vllm-gateway simulate`: its arguments, apart from what it does: other commands need not load the simulator."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

WHAT = "compare strategies on recorded traffic, without engines"
MOST_INSTANCES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE", help="JSON lines or CSV, also .gz")
    parser.add_argument("--strategy", required=True, type=_names, metavar="A,B,...", help="strategies to compare")
    parser.add_argument("--instances", required=True, type=_whole(1, MOST_INSTANCES), metavar="N")
    parser.add_argument("--model", metavar="NAME", help="of a trace of several models, the one to replay")
    parser.add_argument("--speed", type=_speed, default=1.0, metavar="X", help="of the arrivals; 2: twice the load")
    parser.add_argument("--cache-blocks", type=_whole(1), metavar="B", help="KV cache of an instance, in trace blocks")
    parser.add_argument("--limit", type=_whole(1), metavar="R", help="only the first R requests")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of strategies that draw lots")
    parser.add_argument("--strategies-dir", type=Path, metavar="DIR", help="as `strategies_dir` in the configuration")
    parser.add_argument("--json", action="store_true", help="a list of objects, one for each strategy")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="the distributions of the time to first token")


def run(arguments: argparse.Namespace) -> int:
    from vllm_gateway.cli.simulating import simulate

    return simulate(arguments)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names no strategy")
    return list(dict.fromkeys(names))


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    wanted = f"a whole number from {least}" + (f" to {most}" if most else "")

    def convert(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= (most or sys.maxsize):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return int(text)

    return convert


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return speed
