# SPDX-License-Identifier: Apache-2.0
"""`vllm-gateway check`: says what a configuration would run, or everything that is wrong with it."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vllm_gateway.cli.columns import columns
from vllm_gateway.cli.missing import missing
from vllm_gateway.cli.serve import CONFIG, EXIT_BAD_CONFIG
from vllm_gateway.telemetry.terminal import say

if TYPE_CHECKING:
    from vllm_gateway.configuration.settings import Settings

WHAT = "read the configuration, say what would run and every problem with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help=CONFIG)


def run(arguments: argparse.Namespace) -> int:
    return check(arguments.config, os.environ, sys.stdout)


def check(config_file: Path | None, environ: Mapping[str, str], out: TextIO) -> int:
    """Prints to `out`; 0: the configuration is good, 2: it is not."""
    from vllm_gateway.configuration.known_secrets import learn_settings
    from vllm_gateway.configuration.loading import ConfigError, load_settings
    from vllm_gateway.telemetry.secrets import Secrets

    try:
        settings = load_settings(config_file, environ)
    except ConfigError as error:
        return _refuse(error.problems, out)
    secrets = Secrets()
    learn_settings(secrets, settings)
    say(secrets.mask("\n".join(_describe(settings))), out)
    if problems := missing(settings, environ):
        say("", out)
        return _refuse([secrets.mask(problem) for problem in problems], out)
    return 0


def _refuse(problems: Sequence[object], out: TextIO) -> int:
    for problem in problems:
        say(problem, out)
    say(f"{len(problems)} problem{'' if len(problems) == 1 else 's'}", out)
    return EXIT_BAD_CONFIG


def _describe(settings: "Settings") -> list[str]:
    server = settings.server
    host = f"[{server.host}]" if ":" in server.host else server.host
    reach = "open to all who can reach it" if server.open else "for this machine alone"
    count = len(server.api_keys)
    access = f"{count} API key{'' if count == 1 else 's'}" if count else f"no API key: {reach}"
    scheme = "https" if server.tls else "http"
    rows = [("MODEL", "INSTANCES", "SERVED FROM", "STRATEGY")]
    for name, model in settings.models.items():
        source = model.repository or ", ".join(model.endpoints)
        instances = str(len(model.endpoints) or model.instances)
        rows.append((name, instances, source, settings.strategy_name(name)))
    return [
        f"address  {scheme}://{host}:{server.port} ({access})",
        *_describe_keys(settings),
        *_describe_machine(settings),
        "",
        columns(*rows),
        *_advice(settings),
    ]


def _describe_keys(settings: "Settings") -> list[str]:
    named = [f"{key.name} ({key.role})" for key in settings.server.api_keys if not isinstance(key, str)]
    return [f"keys     {', '.join(named)}"] if named else []


def _advice(settings: "Settings") -> list[str]:
    """What works, and could be safer."""
    plain = sum(isinstance(key, str) for key in settings.server.api_keys)
    if not plain:
        return []
    which = "a key that is plain text may" if plain == 1 else f"{plain} keys that are plain text may"
    return ["", f"advice   server.api_keys: {which} do everything; give clients {{name: ..., key: ...}}, which may not"]


def _describe_machine(settings: "Settings") -> list[str]:
    """Where the gateway's own engines run; nothing if it has none."""
    if all(model.endpoints for model in settings.models.values()):
        return []
    engine = settings.docker.image if settings.runtime == "docker" else " ".join(settings.process.command)
    gpus = settings.gpus
    devices = ", ".join(f"{device.name} {device.memory_mib} MiB" for device in gpus.devices)
    return [
        f"runtime  {settings.runtime} ({engine})",
        f"gpus     {gpus.source} ({devices})" if devices else f"gpus     {gpus.source}",
    ]
