# SPDX-License-Identifier: Apache-2.0
"""The commands: serve, check, status, retry, simulate."""

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vllm_gateway import __version__
from vllm_gateway.cli_simulate_arguments import add_arguments as add_simulate_arguments

EXIT_BAD_CONFIG = 2


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    commands = {"serve": _serve, "check": _check, "status": _status, "retry": _retry, "simulate": _simulate}
    return commands[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-gateway", description="One OpenAI-compatible address in front of vLLM.")
    parser.add_argument("--version", action="version", version=f"vllm-gateway {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the gateway")
    serve.add_argument("--config", type=Path, metavar="FILE")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int)
    serve.add_argument("--take-over", action="store_true", help="from the gateway that runs there, losing no request")
    check = commands.add_parser("check", help="read the configuration, say what would run and every problem in it")
    check.add_argument("--config", type=Path, metavar="FILE")
    status = commands.add_parser("status", help="GPUs, models and instances of a running gateway")
    status.add_argument("--json", action="store_true", help="as the gateway answers it")
    retry = commands.add_parser("retry", help="try a model that failed to start again now")
    retry.add_argument("model", metavar="MODEL")
    for asking in (status, retry):
        asking.add_argument("--url", default=os.environ.get("VLLM_GATEWAY_URL", "http://127.0.0.1:8000"))
        asking.add_argument("--api-key", default=os.environ.get("VLLM_GATEWAY_API_KEY"))
    simulate = commands.add_parser("simulate", help="compare strategies on recorded traffic, without engines")
    add_simulate_arguments(simulate)
    return parser


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

    from vllm_gateway.serving import serve

    return uvloop.run(serve(settings, load, arguments.config, take_over=arguments.take_over))


def _status(arguments: argparse.Namespace) -> int:
    from vllm_gateway.cli_status import table

    page = _ask(arguments, "GET", "/gateway/status")
    if page is not None:
        print(json.dumps(page, indent=2) if arguments.json else table(page))
    return 0 if page is not None else 1


def _retry(arguments: argparse.Namespace) -> int:
    model = _ask(arguments, "POST", f"/gateway/models/{urllib.parse.quote(arguments.model)}/retry")
    if model is not None:
        print(f"{arguments.model}: {model['state']}, {model['running']} of {model['wanted']} running")
    return 0 if model is not None else 1


def _ask(arguments: argparse.Namespace, method: str, path: str) -> Any:
    """The gateway's answer; None, and a word on stderr, if there is none."""
    url = f"{arguments.url.rstrip('/')}{path}"
    request = urllib.request.Request(url, method=method)  # noqa: S310 - the operator's own
    if arguments.api_key:
        request.add_header("Authorization", f"Bearer {arguments.api_key}")
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
            return json.load(reply)
    except urllib.error.HTTPError as error:
        print(f"The gateway at {arguments.url} refuses: {error.read().decode(errors='replace')}", file=sys.stderr)
    except (urllib.error.URLError, ValueError, OSError) as error:
        print(f"No gateway answers at {arguments.url}: {error}. Name another with --url.", file=sys.stderr)
    return None


def _simulate(arguments: argparse.Namespace) -> int:
    from vllm_gateway.cli_simulate import simulate

    return simulate(arguments)


if __name__ == "__main__":
    sys.exit(main())
