# SPDX-License-Identifier: Apache-2.0
"""`vllm-gateway status`: GPUs, models and instances of a running gateway as readable tables."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from vllm_gateway.cli import client
from vllm_gateway.cli.columns import columns
from vllm_gateway.telemetry.terminal import say

WHAT = "GPUs, models and instances of a running gateway"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as the gateway answers it")
    client.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return status(client.address_of(arguments), as_json=arguments.json)


def status(address: client.Address, *, as_json: bool) -> int:
    """Returns the exit status."""
    try:
        page = address.ask("GET", "/gateway/status", "active_containers_by_name")
    except client.NoAnswer as error:
        say(f"vllm-gateway status: {error}", sys.stderr)
        return 1
    say(json.dumps(page, indent=2) if as_json else table(page))
    return 0


def table(page: Mapping[str, Any]) -> str:
    """`page` is the reply of GET /gateway/status."""
    gpus = [
        [gpu["index"], gpu["name"], gpu["total_mib"], gpu["reserved_mib"], gpu["used_mib"], gpu["problem"] or ""]
        for gpu in page["gpus"]
    ]
    models = [
        [name, m["state"], f"{m['running']}/{m['wanted']}", m["queued"], m["served"], m["strategy"], _note(m)]
        for name, m in page["models"].items()
    ]
    instances = [
        [one["name"], _state(one), ",".join(one["gpus"]), f"{one['in_flight']}", one["total"], _ago(one)]
        for one in page["active_containers_by_name"].values()
    ]
    parts = [
        f"vllm-gateway {page['version']}, up {page['uptime_s']:.0f} s, runtime {page['runtime']}{_asleep(page)}",
        "\n".join(f"PROBLEM  {problem}" for problem in page["problems"]),
        columns(["GPU", "NAME", "TOTAL MiB", "RESERVED", "USED", "PROBLEM"], *gpus),
        columns(["MODEL", "STATE", "RUNNING", "QUEUED", "SERVED", "STRATEGY", "NOTE"], *models),
        columns(["INSTANCE", "STATE", "GPUS", "IN FLIGHT", "TOTAL", "LAST USED"], *instances),
    ]
    return "\n\n".join(filter(None, parts))


def _asleep(page: Mapping[str, Any]) -> str:
    host = page["host_memory"]
    return f", {host['held_mib']} of {host['limit_mib']} MiB host memory for sleep" if host["held_mib"] else ""


def _note(model: Mapping[str, Any]) -> str:
    if pull := model.get("image_pull"):
        far = f", {pull['done_mib']} of {pull['total_mib']} MiB" if pull["total_mib"] else ""
        return f"fetches {pull['image']} for {pull['since_s']:.0f} s{far}"
    return str(model["why_fewer"] or model["last_error"] or "").partition("\n")[0]


def _state(one: Mapping[str, Any]) -> str:
    said = [one["state"], *([one["health"]] if one["health"] != "healthy" else [])]
    return ", ".join([*said, *([f"waits for {one['waits_for']}"] if one.get("waits_for") else [])])


def _ago(one: Mapping[str, Any]) -> str:
    return "never" if one["last_used_s_ago"] is None else f"{one['last_used_s_ago']:.0f} s ago"
