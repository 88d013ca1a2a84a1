# SPDX-License-Identifier: Apache-2.0
"""What a running gateway holds at one moment: tasks, files, requests, memory, engines. Compared, it shows leaks."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarl import URL

from tests.gateway import GatewayProcess


@dataclass(frozen=True, slots=True)
class Held:
    """`files` by kind, without idle connections to engines and to Docker: those may stay open for some seconds."""

    tasks: int
    files: Counter[str]
    engines: int

    def no_more_than(self, other: "Held") -> bool:
        return self.tasks <= other.tasks and self.files <= other.files and self.engines == other.engines


def open_files(pid: int, port: int) -> Counter[str]:
    """The descriptors of the process by kind: `client`, `unix` (engines, Docker), `stranger` (nobody known), ..."""
    connections = {**_tcp(pid, "tcp"), **_tcp(pid, "tcp6")}
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        found = re.fullmatch(r"socket:\[(\d+)\]", target)
        if found is None:
            kinds[target.split(":")[0] if ":[" in target else "file"] += 1
        elif found[1] not in connections:
            kinds["unix"] += 1
        else:
            local, remote = connections[found[1]]
            if remote == 0:
                kinds["listener"] += 1
            elif local == port:
                kinds["client"] += 1
            else:
                kinds["stranger"] += 1
    return kinds


def _tcp(pid: int, table: str) -> dict[str, tuple[int, int]]:
    """inode -> (local port, remote port), of the process's network namespace."""
    found = {}
    for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        found[fields[9]] = (local, remote)
    return found


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def tasks(gateway: GatewayProcess) -> int:
    async with gateway.http.get("/metrics") as reply:
        found = re.search(r"^vllm_gateway_tasks (\S+)$", await reply.text(), re.MULTILINE)
    assert found is not None
    return round(float(found[1]))


async def held(gateway: GatewayProcess, page: dict[str, Any] | None = None) -> Held:
    """`page`: its status, where that is known already."""
    page = page or await gateway.status()
    url = URL(gateway.url)
    assert url.port is not None
    files = open_files(gateway.process.pid, url.port)
    del files["unix"]
    return Held(await tasks(gateway), files, len(page["active_containers_by_name"]))


def addresses(page: dict[str, Any]) -> set[str]:
    """Where the engines listen."""
    return {address for one in page["active_containers_by_name"].values() if (address := one["address"])}


def unsettled(page: dict[str, Any], engines: set[str], footprint_mib: int) -> list[str]:
    """What of the books does not fit what runs; `engines` are the addresses of the processes that there are."""
    wrong = []
    for name, one in page["active_containers_by_name"].items():
        if one["in_flight"]:
            wrong.append(f"{one['in_flight']} requests in flight on {name}")
        if one["state"] != "ready":
            wrong.append(f"{name} is {one['state']}")
    wrong += [
        f"{model['queued']} requests wait for {name}" for name, model in page["models"].items() if model["queued"]
    ]
    if engines != addresses(page):
        wrong.append(f"engines run on {engines}, the gateway knows of {addresses(page)}")
    reserved = sum(gpu["reserved_mib"] for gpu in page["gpus"])
    if reserved != footprint_mib * len(engines):
        wrong.append(f"{reserved} MiB are reserved for {len(engines)} engines")
    return wrong
