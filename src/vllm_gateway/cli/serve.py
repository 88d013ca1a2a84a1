# SPDX-License-Identifier: Apache-2.0
"""`vllm-gateway serve`: runs the gateway."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from vllm_gateway.telemetry.terminal import say

WHAT = "run the gateway"
CONFIG = "YAML; without it the environment says what to serve"
EXIT_BAD_CONFIG = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help=CONFIG)
    parser.add_argument("--host", help="address to listen on, before `server.host`")
    parser.add_argument("--port", type=int, help="before `server.port`; 0: any free one")
    parser.add_argument("--take-over", action="store_true", help="from the gateway that runs there, losing no request")


def run(arguments: argparse.Namespace) -> int:
    from vllm_gateway.configuration.loading import ConfigError, load_settings
    from vllm_gateway.configuration.places import needed_places
    from vllm_gateway.files.watch import Watch
    from vllm_gateway.service import first_signals

    given = {"server.host": arguments.host, "server.port": arguments.port}
    load = partial(load_settings, arguments.config, os.environ, given)
    first_signals.about_to_read()
    config_file = Watch([arguments.config]) if arguments.config is not None else None
    try:
        settings = load(None)
    except ConfigError as error:
        say(error, sys.stderr)
        return EXIT_BAD_CONFIG
    if problems := list(needed_places(settings, os.environ)):
        say("\n".join(problems), sys.stderr)
        return EXIT_BAD_CONFIG
    import uvloop

    from vllm_gateway.service.lifetime import serve

    try:
        return uvloop.run(serve(settings, load, config_file, take_over=arguments.take_over))
    finally:
        first_signals.hear()  # the last ones
