# SPDX-License-Identifier: Apache-2.0
"""The commands: serve, check, status, retry, simulate."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_gateway import __version__
from vllm_gateway.cli_simulate_arguments import add_arguments as add_simulate_arguments

if TYPE_CHECKING:
    from vllm_gateway.cli_asking import Address

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_BAD_CONFIG = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
_CONFIG = "YAML; without it the environment says what to serve"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    commands = {"serve": _serve, "check": _check, "status": _status, "retry": _retry, "simulate": _simulate}
    try:
        return commands[arguments.command](arguments)
    except KeyboardInterrupt:  # before or after the gateway's own handling of it
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-gateway", description="One OpenAI-compatible address in front of vLLM.")
    parser.add_argument("--version", action="version", version=f"vllm-gateway {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = _command(commands, "serve", "run the gateway")
    serve.add_argument("--config", type=Path, metavar="FILE", help=_CONFIG)
    serve.add_argument("--host", help="address to listen on, before `server.host`")
    serve.add_argument("--port", type=int, help="before `server.port`; 0: any free one")
    serve.add_argument("--take-over", action="store_true", help="from the gateway that runs there, losing no request")
    check = _command(commands, "check", "read the configuration, say what would run and every problem in it")
    check.add_argument("--config", type=Path, metavar="FILE", help=_CONFIG)
    status = _command(commands, "status", "GPUs, models and instances of a running gateway")
    status.add_argument("--json", action="store_true", help="as the gateway answers it")
    retry = _command(commands, "retry", "try a model that failed to start again now")
    retry.add_argument("model", metavar="MODEL")
    for asking in (status, retry):
        here = os.environ.get("VLLM_GATEWAY_URL", "http://127.0.0.1:8000")
        asking.add_argument("--url", default=here, help="default: VLLM_GATEWAY_URL, else http://127.0.0.1:8000")
        asking.add_argument("--api-key", metavar="KEY", help="if it asks for one; default: VLLM_GATEWAY_API_KEY")
    simulate = _command(commands, "simulate", "compare strategies on recorded traffic, without engines")
    add_simulate_arguments(simulate)
    return parser


def _command(commands: "_Commands", name: str, what: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")


def _check(arguments: argparse.Namespace) -> int:
    from vllm_gateway.cli_check import check

    return check(arguments.config, os.environ, sys.stdout)


def _serve(arguments: argparse.Namespace) -> int:
    from vllm_gateway.configuration import ConfigError, load_settings

    given = {"server.host": arguments.host, "server.port": arguments.port}
    load = partial(load_settings, arguments.config, os.environ, given)
    try:
        settings = load()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_CONFIG
    import uvloop

    from vllm_gateway.lifetime import serve

    return uvloop.run(serve(settings, load, arguments.config, take_over=arguments.take_over))


def _status(arguments: argparse.Namespace) -> int:
    from vllm_gateway.cli_asking import status

    return status(_address(arguments), as_json=arguments.json)


def _retry(arguments: argparse.Namespace) -> int:
    from vllm_gateway.cli_asking import retry

    return retry(_address(arguments), arguments.model)


def _address(arguments: argparse.Namespace) -> "Address":
    from vllm_gateway.cli_asking import Address

    return Address(arguments.url, arguments.api_key or os.environ.get("VLLM_GATEWAY_API_KEY"))


def _simulate(arguments: argparse.Namespace) -> int:
    from vllm_gateway.cli_simulate import simulate

    return simulate(arguments)


if __name__ == "__main__":
    sys.exit(main())
