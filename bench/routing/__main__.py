# SPDX-License-Identifier: Apache-2.0
"""The commands: matrix and grid (simulate), tables (into the docs), live (real processes), trace (make one up)."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.routing import chats, grid, live, matrix, shared
from bench.routing.tables import Matrix, report
from vllm_gateway.replay.trace import TraceError, read_trace

BEGIN, END = "<!-- tables: python -m bench.routing tables -->", "<!-- end of the tables -->"
GRID_BEGIN, GRID_END = "<!-- grid: make routing-grid -->", "<!-- end of the grid -->"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    commands = {"matrix": _matrix, "tables": _tables, "grid": _grid, "live": _live, "trace": _trace}
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
    sizes = commands.add_parser("grid", help="is prefix_aware anywhere worse? Goes on where it was stopped")
    sizes.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="a line for each cell")
    sizes.add_argument("--cells", type=int, help="only the first ones")
    sizes.add_argument("--seeds", type=int, help="fewer than the grid's file says")
    sizes.add_argument("--write", type=Path, metavar="PAGE.md", help="between its markers; else to the terminal")
    real = commands.add_parser("live", help="a real gateway and simulated engines, in real time")
    real.add_argument("--trace", type=Path, help="instead of --shared")
    real.add_argument(
        "--shared", type=_integers, metavar="P,G,R", help="prefixes of P tokens in G groups, replies of R"
    )
    real.add_argument("--clients", type=int, help="so many, each asking again once answered; else by the arrivals")
    real.add_argument("--not-streamed", action="store_true")
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
    if arguments.trace is not None:
        trace = read_trace(arguments.trace).first(arguments.limit)
    else:
        trace = shared.make(shared.Shape(*(arguments.shared or (1000, 1, 40))), arguments.limit, seed=1)
    names = arguments.strategy.split(",")
    traffic = live.Traffic(arguments.speed, arguments.clients, streamed=not arguments.not_streamed)
    for one in asyncio.run(live.run(trace, names, instances=arguments.instances, traffic=traffic)):
        ttft = f"{one.ttft_p50_s:.3f} {one.ttft_p90_s:.3f} {one.ttft_p99_s:.3f}"
        total = f"total p50 p99 {one.total_p50_s:.3f} {one.total_p99_s:.3f} s, {one.per_s:.1f} requests/s"
        where = f"hit rate {one.hit_rate:.3f}, by instance {one.served}"
        print(f"{one.strategy}: {one.requests} requests, TTFT p50 p90 p99 {ttft} s, {total}, {where}")
    return 0


def _grid(arguments: argparse.Namespace) -> int:
    drawn = grid.read_grid()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = list(
        grid.run(
            drawn.cells[: arguments.cells],
            arguments.seeds or drawn.seeds,
            arguments.out,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    )
    return _tell(grid.report(rows, drawn.most_worse), arguments.write, GRID_BEGIN, GRID_END)


def _tables(arguments: argparse.Namespace) -> int:
    read = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
    text = "\n\n".join(report(Matrix(one["title"], one["rows"]), full=one is read[0]) for one in read)
    return _tell(text, arguments.write, BEGIN, END)


def _tell(text: str, page: Path | None, begin: str, end: str) -> int:
    """To the terminal, or into the page between these markers."""
    if page is None:
        print(text)
        return 0
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        print(f"{page} has no {begin} ... {end}", file=sys.stderr)
        return 2
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    chats.write(chats.make(chats.KINDS[arguments.kind], arguments.requests, arguments.seed), arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
