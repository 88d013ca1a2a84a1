# SPDX-License-Identifier: Apache-2.0
"""The command: python -m bench quick."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import measure, report, rows
from bench.machine import CannotMeasure, build_tools, choose_cores
from bench.targets import Gateway, Nginx, Target


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    try:
        return _quick(arguments)
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="What a request costs the proxy that carries it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    quick = commands.add_parser("quick", help="this gateway and nginx, under two minutes")
    quick.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="a second gateway, of another checkout, in the same rounds"
    )
    quick.add_argument("--rows", metavar="NAME,...", help=f"of {', '.join(row.name for row in rows.QUICK)}")
    quick.add_argument("--rounds", type=int, default=5)
    quick.add_argument("--seconds", type=float, default=2.0, help="of each sample")
    return parser


def _quick(arguments: argparse.Namespace) -> int:
    targets: list[Target] = [Nginx(), Gateway()]
    if arguments.against:
        targets.append(Gateway("other gateway", arguments.against / ".venv/bin/vllm-gateway"))
    chosen = [row for row in rows.QUICK if not arguments.rows or row.name in arguments.rows.split(",")]
    results = measure.run(
        chosen,
        targets,
        tools=build_tools(),
        cores=choose_cores(),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(report.quick_table(chosen, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
