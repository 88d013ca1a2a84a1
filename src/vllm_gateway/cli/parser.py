# SPDX-License-Identifier: Apache-2.0
"""Which commands there are."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from vllm_gateway import __version__
from vllm_gateway.cli import check, logs, retry, serve, simulate, status
from vllm_gateway.telemetry.terminal import printable


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Its `run` runs the command. Ends the process if it makes no sense."""
    return parser().parse_args(argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def parser() -> argparse.ArgumentParser:
    whole = _Parser(prog="vllm-gateway", description="One OpenAI-compatible address in front of vLLM.")
    whole.add_argument("--version", action="version", version=f"vllm-gateway {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    return whole
