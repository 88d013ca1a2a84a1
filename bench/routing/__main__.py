# SPDX-License-Identifier: Apache-2.0
"""The commands: matrix (simulate), tables (into the documentation), live (real processes), trace (make one up)."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.routing import chats, live, matrix
from bench.routing.tables import Matrix, report
from vllm_gateway.replay.trace import TraceError, read_trace

BEGIN, END = "<!-- tables: python -m bench.routing tables -->", "<!-- end of the tables -->"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    commands = {"matrix": _matrix, "tables": _tables, "live": _live, "trace": _trace}
    return commands[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.routing", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("matrix", help="simulate every cell; about two minutes for 3,000 requests")
    run.add_argument("--trace", type=Path, required=True)
    run.add_argument("--title", required=True, help="of the trace, in the tables")
    run.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    run.add_argument("--limit", type=int, default=3000, help="requests of the trace")
    run.add_argument("--strategy", default=",".join(matrix.names()), metavar="A,B,...")
    run.add_argument("--caches", type=json.loads, default=matrix.CACHES, metavar="JSON", help="name: blocks")
    run.add_argument("--instances", type=_integers, default=matrix.INSTANCES, metavar="N,...")
    run.add_argument("--loads", type=_decimals, default=matrix.LOADS, metavar="L,...")
    run.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    tables = commands.add_parser("tables", help="the first with all times, the others in short")
    tables.add_argument("results", nargs="+", type=Path, metavar="FILE.json")
    tables.add_argument("--write", type=Path, metavar="PAGE.md", help="between its markers; else to the terminal")
    real = commands.add_parser("live", help="a real gateway and simulated engines, in real time")
    real.add_argument("--trace", type=Path, required=True)
    real.add_argument("--strategy", default="round_robin,prefix_aware", metavar="A,B,...")
    real.add_argument("--instances", type=int, default=4)
    real.add_argument("--limit", type=int, default=400, help="requests of the trace")
    real.add_argument("--speed", type=float, default=3.0, help="of the arrivals")
    made = commands.add_parser("trace", help="made-up traffic")
    made.add_argument("kind", choices=chats.KINDS)
    made.add_argument("out", type=Path, metavar="FILE.jsonl.gz")
    made.add_argument("--requests", type=int, default=3000)
    made.add_argument("--seed", type=int, default=1)
    return parser


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _decimals(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _matrix(arguments: argparse.Namespace) -> int:
    try:
        trace = read_trace(arguments.trace).first(arguments.limit)
    except (TraceError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    rows = matrix.run(
        trace,
        strategies=arguments.strategy.split(","),
        caches=arguments.caches,
        instances=arguments.instances,
        loads=arguments.loads,
        processes=arguments.processes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    arguments.out.write_text(json.dumps({"title": arguments.title, "rows": list(rows)}, indent=1), encoding="utf-8")
    return 0


def _live(arguments: argparse.Namespace) -> int:
    trace = read_trace(arguments.trace).first(arguments.limit)
    names = arguments.strategy.split(",")
    for one in asyncio.run(live.run(trace, names, instances=arguments.instances, speed=arguments.speed)):
        times = f"{one.ttft_p50_s:.3f} {one.ttft_p90_s:.3f} {one.ttft_p99_s:.3f}"
        print(f"{one.strategy}: {one.requests} requests, TTFT p50 p90 p99 {times} s, hit rate {one.hit_rate:.3f}")
    return 0


def _tables(arguments: argparse.Namespace) -> int:
    read = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
    text = "\n\n".join(report(Matrix(one["title"], one["rows"]), full=one is read[0]) for one in read)
    if arguments.write is None:
        print(text)
        return 0
    page = arguments.write.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        print(f"{arguments.write} has no {BEGIN} ... {END}", file=sys.stderr)
        return 2
    arguments.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    chats.write(chats.make(chats.KINDS[arguments.kind], arguments.requests, arguments.seed), arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
