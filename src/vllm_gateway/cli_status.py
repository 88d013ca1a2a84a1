# SPDX-License-Identifier: Apache-2.0
"""The status page as a readable table."""

from collections.abc import Mapping, Sequence
from typing import Any


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
    return "\n\n".join(
        [
            f"vllm-gateway {page['version']}, up {page['uptime_s']:.0f} s, runtime {page['runtime']}",
            _columns(["GPU", "NAME", "TOTAL MiB", "RESERVED", "USED", "PROBLEM"], gpus),
            _columns(["MODEL", "STATE", "RUNNING", "QUEUED", "SERVED", "STRATEGY", "NOTE"], models),
            _columns(["INSTANCE", "STATE", "GPUS", "IN FLIGHT", "TOTAL", "LAST USED"], instances),
        ]
    )


def _note(model: Mapping[str, Any]) -> str:
    return str(model["why_fewer"] or model["last_error"] or "").splitlines()[0] if _has_note(model) else ""


def _has_note(model: Mapping[str, Any]) -> bool:
    return bool(model["why_fewer"] or model["last_error"])


def _state(one: Mapping[str, Any]) -> str:
    return str(one["state"] if one["health"] == "healthy" else f"{one['state']}, {one['health']}")


def _ago(one: Mapping[str, Any]) -> str:
    return "never" if one["last_used_s_ago"] is None else f"{one['last_used_s_ago']:.0f} s ago"


def _columns(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
