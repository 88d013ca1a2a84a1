# SPDX-License-Identifier: Apache-2.0
"""`vllm-gateway logs`: what the engines of a model, or one of them, wrote; as `docker logs` shows it."""

import argparse
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from urllib.parse import quote, urlencode

from vllm_gateway.cli import client
from vllm_gateway.telemetry.terminal import say

WHAT = "what engines wrote: those of a model, or one instance"
_AHEAD = 1000  # lines that have come and are not printed yet

Read = Callable[[], Iterator[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="an instance; or a model: its instances, else those that ended")
    parser.add_argument("-f", "--follow", action="store_true", help="and what they go on to write, until they end")
    parser.add_argument("-n", "--tail", type=_tail, default="all", metavar="N", help="the last N lines; default: all")
    client.add_arguments(parser)


def _tail(text: str) -> str:
    if text != "all" and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of lines nor 'all'")
    return text


def run(arguments: argparse.Namespace) -> int:
    address = client.address_of(arguments)
    query = urlencode({"tail": arguments.tail, "follow": str(arguments.follow).lower()})
    try:
        reads: dict[str, Read] = {
            name: partial(address.lines, f"/gateway/instances/{quote(name)}/logs?{query}", patient=arguments.follow)
            for name in _instances(address, arguments.name)
        }
        if len(reads) == 1:
            _print(*reads.values())
        elif arguments.follow:
            _print_side_by_side(reads)
        else:
            _print_in_turn(reads)
    except client.NoAnswer as error:
        say(f"vllm-gateway logs: {error}", sys.stderr)
        return 1
    return 0


def _instances(address: client.Address, name: str) -> list[str]:
    """One of that name; or the model's, those that run if there are any. Raises NoAnswer."""
    logs = address.ask("GET", "/gateway/logs", "logs")["logs"]
    if any(one["instance"] == name for one in logs):
        return [name]
    of_model = address.ask("GET", f"/gateway/logs?{urlencode({'model': name})}", "logs")["logs"]
    found = [one for one in of_model if one["state"] != "ended"] or of_model
    if not found:
        raise client.NoAnswer(f"No engine of {name} has been started yet, or its log is not kept any more.")
    return [one["instance"] for one in found]


def _print(read: Read) -> None:
    for line in read():
        say(line)


def _print_in_turn(reads: Mapping[str, Read]) -> None:
    width = max(map(len, reads))
    for name, read in reads.items():
        for line in read():
            say(f"{name:{width}} | {line}")


def _print_side_by_side(reads: Mapping[str, Read]) -> None:
    """Each line with its instance, in the order in which they come. Raises NoAnswer, once all that came is printed."""
    came: queue.Queue[tuple[str, str | client.NoAnswer | None]] = queue.Queue(_AHEAD)
    for name, read in reads.items():
        threading.Thread(target=_put, args=(name, read, came), daemon=True).start()
    width, left, failure = max(map(len, reads)), len(reads), None
    while left:
        name, line = came.get()
        if isinstance(line, str):
            say(f"{name:{width}} | {line}")
            continue
        left -= 1
        failure = failure or line
    if failure is not None:
        raise failure


def _put(name: str, read: Read, came: "queue.Queue[tuple[str, str | client.NoAnswer | None]]") -> None:
    """The lines, and what ended them."""
    lines: Iterable[str] = read()
    try:
        for line in lines:
            came.put((name, line))
    except client.NoAnswer as error:
        came.put((name, error))
    else:
        came.put((name, None))
