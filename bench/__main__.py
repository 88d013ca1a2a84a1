# SPDX-License-Identifier: Apache-2.0
"""The commands: python -m bench all, quick, check, instructions, profile, report, peers."""

import argparse
import random
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from bench import instructions, measure, peers, regression, report, rows, ruler, startup
from bench.checkouts import other_one, this_one
from bench.machine import ROOT, WORK, CannotMeasure, build_tools, choose_cores, describe
from bench.paired import Verdict, least_pairs
from bench.profile import profile
from bench.results import Results, read, save
from bench.targets import Direct, Gateway, Nginx, Target

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results.json"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="What a request costs the proxy that carries it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    def add_extent(command: argparse.ArgumentParser, rounds: int, seconds: float) -> None:
        command.add_argument("--rounds", type=int, default=rounds)
        command.add_argument("--seconds", type=float, default=seconds, help="of each sample")
        command.add_argument("--rows", type=_names, metavar="NAME,...", help="of plain_1k, plain_64k, plain_1m, ...")

    every = add("all", _all, "all rows and proxies; the results go into a file and its tables into docs/performance.md")
    add_extent(every, 5, 3.0)
    every.add_argument(
        "--only", type=_names, metavar="PROXY,...", help="measure these (and nginx) again, keep the rest"
    )
    every.add_argument("--results", type=Path, default=RESULTS)
    add_extent(add("quick", _quick, "this gateway and nginx, under two minutes"), 5, 2.0)
    ruled = add("against", _against, "whether this gateway is dearer than another version; fails unless it is not")
    ruled.add_argument("other", metavar="FOLDER|REVISION", help="another checkout, or a revision to check out")
    ruled.add_argument("--pairs", type=int, default=15)
    ruled.add_argument("--seconds", type=float, default=2.5, help="of requests in each pair; tokens twice")
    ruled.add_argument("--limit", type=float, default=ruler.REQUEST_LIMIT, help="of the ratio for requests")
    ruled.add_argument("--token-limit", type=float, default=ruler.TOKEN_LIMIT, help="of the ratio for streamed tokens")
    ruled.add_argument("--rows", type=_names, metavar="NAME,...", help="of plain_1k, plain_64k, tokens")
    counted = add("instructions", _instructions, "instructions of the gateway's own part of a request")
    counted.add_argument("other", nargs="?", metavar="FOLDER|REVISION", help="compare with this one's")
    counted.add_argument("--limit", type=float, default=ruler.REQUEST_LIMIT)
    check = add("check", _check, "fails if a request costs over 1.2 times what bench/recorded.json says, beside nginx")
    add_extent(check, 5, 2.0)
    check.add_argument("--record", action="store_true", help="write bench/recorded.json instead")
    profiled = add("profile", _profile, "where the gateway's time goes")
    add_extent(profiled, 1, 10.0)
    written = add("report", _report, "the tables of a results file, as Markdown")
    written.add_argument("results", type=Path, nargs="?", default=RESULTS)
    written.add_argument("--into", type=Path, metavar="PAGE", help="put them between the marks of this page")
    installed = add("peers", _peers, f"installs {', '.join(peers.PACKAGES)} under .bench/")
    installed.add_argument("names", nargs="*", help="only these")
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")


def _all(arguments: argparse.Namespace) -> int:
    only: list[str] | None = arguments.only
    proxies: list[Target] = [Direct(), Nginx(), *peers.ALL, Gateway()]
    if only:
        proxies = [one for one in proxies if one.name in {*only, "direct", "nginx"}]
    flat = [Gateway("1 instance", instances=1), Gateway("64 instances", instances=64)]
    flat.append(Gateway("200 models", instances=1, models=200))
    kept = read(arguments.results) if (only or arguments.rows) and arguments.results.exists() else Results()

    def keep(newer: Results, *, chosen: list[str] | None = only) -> None:
        newer.date, newer.machine = f"{datetime.now(UTC):%Y-%m-%d}", describe()
        kept.take(newer, chosen)
        save(kept, arguments.results)

    with _bench(arguments) as bench:
        if chosen := _rows(arguments, rows.ALL_PROXIES):
            keep(measure.run(bench, chosen, proxies, "nginx", each=keep))
        if not only or "gateway" in only:
            if _rows(arguments, [rows.FLAT]):
                found = measure.run(bench, [rows.FLAT], flat, flat[0].name)
                found.versions.clear()  # they are all this gateway
                keep(found, chosen=None)
            if not arguments.rows or "start" in arguments.rows:
                keep(startup.run(bench, Gateway()), chosen=None)
    print(report.markdown(kept))
    if arguments.results == RESULTS and PAGE.exists():
        report.write_into(PAGE, report.markdown(kept))
    return 0


def _quick(arguments: argparse.Namespace) -> int:
    chosen = _rows(arguments, rows.QUICK)
    with _bench(arguments) as bench:
        print(report.text_table(chosen, measure.run(bench, chosen, [Nginx(), Gateway()], "nginx")))
    return 0


def _against(arguments: argparse.Namespace) -> int:
    if arguments.pairs < least_pairs():
        raise CannotMeasure(f"{arguments.pairs} pairs say nothing: at least {least_pairs()}, and 15 as a rule")
    chosen = [row for row in ruler.ROWS if not arguments.rows or row.name in arguments.rows]
    limits = {"request": arguments.limit, "token": arguments.token_limit}
    this, other = this_one(), other_one(arguments.other, _say)
    try:
        versions = [f"{one.name}: {one.version()}" for one in (this, other)]
        with measure.bench(build_tools(), choose_cores(), rounds=1, seconds=arguments.seconds, say=_say) as bench:
            measured = ruler.compare(bench, chosen, this, other, arguments.pairs, random.Random())
    except measure.FAILURES as error:
        raise CannotMeasure(str(error)) from error
    print("\n".join([*versions, "", ruler.table(measured, limits)]))
    return 0 if all(one.verdict(limits[one.row.unit]) is Verdict.HOLDS for one in measured) else 1


def _instructions(arguments: argparse.Namespace) -> int:
    checkouts = [this_one(), *([other_one(arguments.other, _say)] if arguments.other else [])]
    found = instructions.per_request(checkouts, choose_cores(), _say)
    for checkout, count in zip(checkouts, found, strict=True):
        print(f"{checkout.name}: {count:,.0f} instructions a request, {checkout.version()}")
    if len(found) == 1:
        return 0
    ratio = found[0] / found[1]
    holds = ratio < arguments.limit
    print(f"ratio {ratio:.4f}, limit {arguments.limit:g}: {(Verdict.HOLDS if holds else Verdict.DEARER).value}")
    return 0 if holds else 1


def _check(arguments: argparse.Namespace) -> int:
    chosen = _rows(arguments, rows.QUICK)
    with _bench(arguments) as bench:
        results = measure.run(bench, chosen, [Nginx(), Gateway()], "nginx")
    print(report.text_table(chosen, results))
    if arguments.record:
        regression.record(chosen, results)
        return 0
    problems = regression.problems(chosen, results, regression.recorded())
    print("\n".join(["Dearer than before:", *problems] if problems else ["Not dearer than recorded."]))
    return 1 if problems else 0


def _profile(arguments: argparse.Namespace) -> int:
    usual: list[rows.Row] = [rows.PLAIN[0], rows.STREAMS]
    for row in _rows(arguments, rows.QUICK) if arguments.rows else usual:
        with _bench(arguments) as bench:
            print(f"{row.title}\n{profile(bench, row, Gateway())}\n")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    text = report.markdown(read(arguments.results))
    if arguments.into:
        report.write_into(arguments.into, text)
    else:
        print(text)
    return 0


def _peers(arguments: argparse.Namespace) -> int:
    WORK.mkdir(exist_ok=True)
    return 1 if peers.install(arguments.names or peers.PACKAGES, _say) else 0


def _rows(arguments: argparse.Namespace, there: Sequence[rows.Row]) -> list[rows.Row]:
    return [row for row in there if not arguments.rows or row.name in arguments.rows]


def _bench(arguments: argparse.Namespace) -> AbstractContextManager[measure.Bench]:
    return measure.bench(build_tools(), choose_cores(), rounds=arguments.rounds, seconds=arguments.seconds, say=_say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
