# SPDX-License-Identifier: Apache-2.0
"""What an instance looks like to Docker: the configuration it is created with, and what its inspection says. Pure."""

import os
from collections.abc import Mapping
from typing import Any

from vllm_gateway.configuration.settings import Docker
from vllm_gateway.fleet.runtimes import Found, Launch, Running

_LABEL = "vllm-gateway."
OWNER_LABEL = _LABEL + "owner"
_ENGINE_CACHE = "/root/.cache/huggingface"
_COMPILE_CACHE = "/root/.cache/vllm"  # of torch.compile: a warm one saves minutes of a start
_VOLUME = "vllm-gateway-"  # Docker makes a named volume when it is first mounted
_MIB = 1024 * 1024


def labels(launch: Launch, owner: str) -> dict[str, str]:
    """What a later gateway needs to know to adopt the container."""
    return {
        OWNER_LABEL: owner,
        _LABEL + "model": launch.model,
        _LABEL + "instance": str(launch.number),
        _LABEL + "spec": launch.spec_hash,
        _LABEL + "gpus": ",".join(launch.gpu_ids),
        _LABEL + "footprint": str(launch.footprint_mib),
    }


def container_config(launch: Launch, settings: Docker, owner: str, port: int) -> dict[str, Any]:
    """The body of Docker's create call. The engine is published on 127.0.0.1 alone: the gateway is the only door."""
    # An engine that is PID 1 ignores SIGTERM until it has a handler; an init in front of it does not.
    host: dict[str, Any] = {"Init": True, "RestartPolicy": {"Name": "no"}}
    if settings.ipc == "host":
        host["IpcMode"] = "host"
    elif settings.shm_mib is not None:
        host["ShmSize"] = settings.shm_mib * _MIB
    if settings.network is not None:
        host["NetworkMode"] = settings.network
    else:
        host["PortBindings"] = {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    weights = f"{_VOLUME}huggingface" if settings.cache_dir is None else _on_host(settings.cache_dir)
    host["Binds"] = [f"{weights}:{_ENGINE_CACHE}", f"{_VOLUME}vllm:{_COMPILE_CACHE}", *settings.volumes]
    if launch.gpu_ids:
        host["DeviceRequests"] = [
            {"Driver": "nvidia", "DeviceIDs": list(launch.gpu_ids), "Capabilities": [["gpu"]]},
        ]
    return {
        "Image": launch.image,
        "Cmd": [*launch.arguments, "--host", "0.0.0.0", "--port", str(port)],  # noqa: S104 - inside the container
        "Env": [f"{name}={value}" for name, value in launch.environment.items()],
        "Labels": labels(launch, owner),
        "ExposedPorts": {f"{port}/tcp": {}},
        "HostConfig": host,
    }


def _on_host(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def owner_of(inspected: Mapping[str, Any]) -> str | None:
    owner: str | None = (inspected["Config"].get("Labels") or {}).get(OWNER_LABEL)
    return owner


def running(inspected: Mapping[str, Any], settings: Docker, port: int) -> Running:
    """Where the instance is reached; port 0 if it ended before that could be seen."""
    handle: str = inspected["Id"]
    if settings.network is not None:
        return Running(handle, inspected["Name"].lstrip("/"), port)
    bindings = (inspected["NetworkSettings"].get("Ports") or {}).get(f"{port}/tcp") or []
    return Running(handle, "127.0.0.1", int(bindings[0]["HostPort"]) if bindings else 0)


def found(inspected: Mapping[str, Any], settings: Docker, port: int) -> Found:
    """What an earlier gateway left; a label that does not read well becomes a value that matches nothing."""
    read = inspected["Config"].get("Labels") or {}
    gpus = read.get(_LABEL + "gpus", "")
    return Found(
        running=running(inspected, settings, port) if inspected["State"]["Running"] else None,
        handle=inspected["Id"],
        name=inspected["Name"].lstrip("/"),
        model=read.get(_LABEL + "model", ""),
        number=_number(read.get(_LABEL + "instance", "")),
        spec_hash=read.get(_LABEL + "spec", ""),
        gpu_ids=tuple(gpus.split(",")) if gpus else (),
        footprint_mib=_number(read.get(_LABEL + "footprint", "")),
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
