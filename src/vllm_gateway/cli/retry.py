# SPDX-License-Identifier: Apache-2.0
"""`vllm-gateway retry`: has a model that failed to start tried again now."""

import argparse
import sys
from urllib.parse import quote

from vllm_gateway.cli import client
from vllm_gateway.telemetry.terminal import say

WHAT = "try a model that failed to start again now"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    client.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return retry(client.address_of(arguments), arguments.model)


def retry(address: client.Address, model: str) -> int:
    """Returns the exit status."""
    try:
        found = address.ask("POST", f"/gateway/models/{quote(model)}/retry", "running")
    except client.NoAnswer as error:
        say(f"vllm-gateway retry: {error}", sys.stderr)
        return 1
    say(f"{model}: {found['state']}, {found['running']} of {found['wanted']} running")
    return 0
