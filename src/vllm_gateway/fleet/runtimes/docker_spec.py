# SPDX-License-Identifier: Apache-2.0
"""What an instance looks like to Docker: the configuration it is created with, and what its inspection says. Pure."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllm_gateway.configuration.settings import Docker
from vllm_gateway.fleet.instance import safe_name
from vllm_gateway.fleet.runtimes import Found, Launch, Running, StartError
from vllm_gateway.fleet.runtimes.sockets import NAME
from vllm_gateway.routing import Address

_LABEL = "vllm-gateway."
OWNER_LABEL = _LABEL + "owner"
_ENGINE_CACHE = "/root/.cache/huggingface"
_COMPILE_CACHE = "/root/.cache/vllm"  # of torch.compile: a warm one saves minutes of a start
_VOLUME = "vllm-gateway-"  # Docker makes a named volume when it is first mounted
_MIB = 1024 * 1024
_SHM_MIB = 16 * 1024
_SOCKET_FOLDER = "/run/vllm-gateway"
SOCKET = f"{_SOCKET_FOLDER}/{NAME}"  # as the container sees it
_KEY_VARIABLE = "VLLM_API_KEY"
# To a release that could not reach it (no published port, or a key), the spec is not the one that it wants.
_UNREACHABLE_TO_OLDER = "+reached-otherwise"
_MOST_PROCESSES = 32_768
# What a root without its powers lacks to use a cache of another user.
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER")


def labels(launch: Launch, owner: str) -> dict[str, str]:
    """What a later gateway needs to know to adopt the container."""
    return {
        OWNER_LABEL: owner,
        _LABEL + "model": launch.model,
        _LABEL + "instance": str(launch.number),
        _LABEL + "spec": launch.spec_hash + _UNREACHABLE_TO_OLDER,
        _LABEL + "gpus": ",".join(launch.gpu_ids),
        _LABEL + "footprint": str(launch.footprint_mib),
    }


def own_network(owner: str) -> dict[str, Any]:
    """For engines that need a port, where the operator names no network. They do not reach one another there."""
    return {
        "Name": f"{owner}_engines",
        "Driver": "bridge",
        "CheckDuplicate": True,
        "Labels": {OWNER_LABEL: owner},
        "Options": {"com.docker.network.bridge.enable_icc": "false"},
    }


def container_config(
    launch: Launch, settings: Docker, owner: str, port: int, *, socket: Path | None, network: str | None
) -> dict[str, Any]:
    """The body of Docker's create call. Nothing is published: the gateway is the only door.

    `socket`: where the engine listens, on the host; none: on a port of its own address in `network`.
    """
    host: dict[str, Any] = {
        "Init": True,  # an engine that is PID 1 ignores SIGTERM until it has a handler; an init before it does not
        "RestartPolicy": {"Name": "no"},
        "SecurityOpt": ["no-new-privileges"],
        "CapDrop": ["ALL"],
        "CapAdd": list(_CAPABILITIES),
        "PidsLimit": _MOST_PROCESSES,
    }
    if settings.ipc == "host":
        host["IpcMode"] = "host"
    else:
        host["IpcMode"] = "private"
        host["ShmSize"] = (settings.shm_mib or _SHM_MIB) * _MIB
    if network is not None:
        host["NetworkMode"] = network
    weights = f"{_VOLUME}huggingface" if settings.cache_dir is None else _on_host(settings.cache_dir)
    host["Binds"] = [f"{weights}:{_ENGINE_CACHE}", f"{_VOLUME}vllm:{_COMPILE_CACHE}", *settings.volumes]
    if socket is not None:
        host["Binds"].append(f"{socket.parent}:{_SOCKET_FOLDER}:Z")  # Z: SELinux lets this container use it
        where = ["--uds", SOCKET]
    else:
        where = ["--host", "0.0.0.0", "--port", str(port)]  # noqa: S104 - inside the container
    environment = {**launch.environment, **({_KEY_VARIABLE: launch.key} if launch.key else {})}
    if launch.gpu_ids:
        host["DeviceRequests"] = [
            {"Driver": "nvidia", "DeviceIDs": list(launch.gpu_ids), "Capabilities": [["gpu"]]},
        ]
    return {
        "Image": launch.image,
        "Cmd": [*launch.arguments, *where],
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": labels(launch, owner),
        "HostConfig": host,
    }


def check_gpus(launch: Launch, created: Mapping[str, Any]) -> None:
    """What is compatible with Docker may drop what it does not know. Raises StartError."""
    if launch.gpu_ids and not created["HostConfig"].get("DeviceRequests"):
        raise StartError(
            "The container engine has ignored the request for GPUs (`DeviceRequests`), as Podman's Docker API does: "
            "the model would run without any. Name a Docker engine in DOCKER_HOST, or use `runtime: process`."
        )


def _on_host(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def owner_of(inspected: Mapping[str, Any]) -> str | None:
    owner: str | None = (inspected["Config"].get("Labels") or {}).get(OWNER_LABEL)
    return owner


def name_by_labels(inspected: Mapping[str, Any]) -> str:
    """Of the instance that the labels speak of. Labels alone prove nothing: an image of a container carries them on."""
    read = inspected["Config"].get("Labels") or {}
    model, number = read.get(_LABEL + "model", ""), read.get(_LABEL + "instance", "")
    return f"{read.get(OWNER_LABEL)}_{safe_name(model)}_instance_{number}"


def name_of(inspected: Mapping[str, Any]) -> str:
    name: str = inspected["Name"]
    return name.lstrip("/")


def running(inspected: Mapping[str, Any], port: int) -> Running:
    """Where the instance is reached; port 0 if it ended before that could be seen."""
    return Running(inspected["Id"], _address(inspected, port))


def socket_of(inspected: Mapping[str, Any]) -> str | None:
    """The path on the host of the socket that the engine listens on; None: it listens on a port."""
    mounts = inspected.get("Mounts") or []
    return next((f"{one['Source']}/{NAME}" for one in mounts if one["Destination"] == _SOCKET_FOLDER), None)


def _address(inspected: Mapping[str, Any], port: int) -> Address:
    """By what the container was started with, be it by this release or the one before, which published a port."""
    key = _key(inspected)
    if path := socket_of(inspected):
        return Address(path=path, key=key)
    network = inspected["NetworkSettings"]
    if bindings := (network.get("Ports") or {}).get(f"{port}/tcp"):
        return Address("127.0.0.1", int(bindings[0]["HostPort"]), key=key)
    # Its own address, and not its name: any container of a network can be given an alias.
    there = (network.get("Networks") or {}).get(inspected["HostConfig"]["NetworkMode"]) or {}
    host = there.get("IPAddress") or there.get("GlobalIPv6Address")
    return Address(host, port, key=key) if host else Address("127.0.0.1", 0)


def _key(inspected: Mapping[str, Any]) -> str:
    """What the engine asks for; empty: nothing."""
    variables = dict(one.partition("=")[::2] for one in inspected["Config"].get("Env") or ())
    return str(variables.get(_KEY_VARIABLE, ""))


def model_of(inspected: Mapping[str, Any]) -> str:
    model: str = (inspected["Config"].get("Labels") or {}).get(_LABEL + "model", "")
    return model


def found(inspected: Mapping[str, Any], port: int) -> Found:
    """What an earlier gateway left; a label that does not read well becomes a value that matches nothing."""
    read = inspected["Config"].get("Labels") or {}
    gpus = read.get(_LABEL + "gpus", "")
    return Found(
        running=running(inspected, port) if inspected["State"]["Running"] else None,
        handle=inspected["Id"],
        name=name_of(inspected),
        model=model_of(inspected),
        number=_number(read.get(_LABEL + "instance", "")),
        spec_hash=read.get(_LABEL + "spec", "").removesuffix(_UNREACHABLE_TO_OLDER),
        gpu_ids=tuple(gpus.split(",")) if gpus else (),
        footprint_mib=_number(read.get(_LABEL + "footprint", "")),
        problem=_way_gone(inspected),
        launched_at=_epoch(inspected["State"].get("StartedAt", "")),
    )


def _epoch(text: str) -> float | None:
    """Of a time such as 2026-11-30T15:36:48.123456789Z, which is UTC; whole seconds do."""
    try:
        return datetime.fromisoformat(text[:19]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _way_gone(inspected: Mapping[str, Any]) -> str | None:
    """An engine that listens on a socket cannot make another one: its folder in there is the one that was deleted."""
    path = socket_of(inspected)
    if path is None:
        return None
    try:
        os.stat(os.path.dirname(path))
    except (FileNotFoundError, NotADirectoryError):
        return f"the folder of its socket has been deleted: {os.path.dirname(path)}"
    except OSError:
        pass  # that says nothing of it
    return None


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
