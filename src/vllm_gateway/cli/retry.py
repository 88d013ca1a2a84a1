# SPDX-License-Identifier: Apache-2.0
"""`vllm-gateway retry`: has a model that failed to start tried again now."""

import argparse
import sys
from urllib.parse import quote

from vllm_gateway.cli import client

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
        print(f"vllm-gateway retry: {error}", file=sys.stderr)
        return 1
    print(f"{model}: {found['state']}, {found['running']} of {found['wanted']} running")
    return 0
