# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: which commands there are, and the exit status."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from vllm_gateway import __version__
from vllm_gateway.cli import check, logs, retry, serve, simulate, status
from vllm_gateway.telemetry.terminal import printable

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_NOBODY_READS = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end
        return EXIT_NOBODY_READS


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except KeyboardInterrupt:  # before or after the gateway's own handling of it
        return EXIT_INTERRUPTED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vllm-gateway", description="One OpenAI-compatible address in front of vLLM.")
    parser.add_argument("--version", action="version", version=f"vllm-gateway {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in (
        ("serve", serve),
        ("check", check),
        ("status", status),
        ("retry", retry),
        ("logs", logs),
        ("simulate", simulate),
    ):
        added = commands.add_parser(
            name, help=command.WHAT, description=f"{command.WHAT[0].upper()}{command.WHAT[1:]}."
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser
