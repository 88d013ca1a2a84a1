# SPDX-License-Identifier: Apache-2.0
"""What can be measured: for each proxy, how it is found and how it is started in front of the backends."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.processes import Address

MODEL = "bench"
OURS = Path(sys.executable).with_name("vllm-gateway")


class Missing(Exception):
    """The target is not installed; the text says how to install it."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a target that was found."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    health: str = "/health"
    start_limit_s: float = 60.0


class Target(Protocol):
    """`models`: how many names the load asks for; 1 is MODEL itself."""

    @property
    def name(self) -> str: ...

    @property
    def models(self) -> int: ...

    def version(self) -> str:
        """Raises Missing."""

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        """In front of the first two of `backends`, if it does not say otherwise."""


@dataclass(frozen=True, slots=True)
class Direct:
    """No proxy: what the load and the backends do by themselves."""

    name: str = "direct"
    models: int = 1

    def version(self) -> str:
        return "no proxy"

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Gateway:
    """This gateway, by its own command, everything switched on: queue, strategy, metrics, request ids, access lines."""

    name: str = "gateway"
    command: Path = OURS
    instances: int = 2
    models: int = 1

    def version(self) -> str:
        if not self.command.exists():
            raise Missing(f"{self.command} is not there; make setup")
        return f"{first_line([str(self.command), '--version'])}{_commit_of(self.command.parent)}"

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        names = [MODEL] if self.models == 1 else [f"{MODEL}-{number + 1}" for number in range(self.models)]
        urls = [f"http://{address}" for address in backends]
        config = {
            "server": {"port": port},
            "runtime": "process",  # needs no Docker; nothing is started, for every model has its endpoints
            "log": {"format": "json"},
            "max_in_flight": 4096,
            "memory_footprint_file": str(folder / "footprints.json"),
            "models": {
                name: {"endpoints": [urls[(first + step) % len(urls)] for step in range(self.instances)]}
                for first, name in enumerate(names)
            },
        }
        file = folder / "gateway.yaml"
        file.write_text(json.dumps(config, indent=1))  # JSON is YAML
        ours = ("VLLM_", "PARALLEL_MODELS_JSON", "ALLOWED_MODELS_JSON", "LOG_LEVEL")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return Launch([str(self.command), "serve", "--config", str(file)], environment)


@dataclass(frozen=True, slots=True)
class Nginx:
    """The yardstick. Bodies stay in memory, replies are not buffered, every request is logged."""

    name: str = "nginx"
    models: int = 1

    def version(self) -> str:
        return first_line([program("nginx"), "-v"]).removeprefix("nginx version: ")

    def launch(self, folder: Path, port: int, backends: Sequence[Address]) -> Launch:
        servers = "\n".join(f"    server {address};" for address in backends[:2])
        config = folder / "nginx.conf"
        config.write_text(f"""
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log warn;
events {{ worker_connections 16384; }}
http {{
  log_format line escape=json '{{"time":"$time_iso8601","id":"$request_id","method":"$request_method","path":"$uri",'
    '"upstream":"$upstream_addr","status":$status,"duration":$request_time,"first_byte":"$upstream_header_time","bytes":$bytes_sent}}';
  access_log {folder}/nginx-access.log line;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  scgi_temp_path {folder}/nginx-scgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  keepalive_requests 1000000000;
  upstream backends {{
{servers}
    keepalive 4096;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    client_max_body_size 100m;
    client_body_buffer_size 2m;
    location / {{
      proxy_pass http://backends;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header X-Request-Id $request_id;
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
""")
        return Launch([program("nginx"), "-c", str(config), "-e", str(folder / "nginx-error.log")])


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing(f"not installed: apt-get install {name}")
    return found


def first_line(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else "unknown"


def _commit_of(folder: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""
