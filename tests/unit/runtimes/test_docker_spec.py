# SPDX-License-Identifier: Apache-2.0
"""What Docker is asked for, without Docker."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_gateway.configuration.settings import Docker
from vllm_gateway.fleet.runtimes import Launch, StartError
from vllm_gateway.fleet.runtimes.docker_spec import (
    check_gpus,
    container_config,
    found,
    name_by_labels,
    name_of,
    running,
)
from vllm_gateway.routing import Address

LAUNCH = Launch("s_m_instance_2", "m", 2, "image:1", ("--model", "m"), {"A": "b=c"}, ("GPU-a", "GPU-b"), 4096, "abc")

COMPILED = "vllm-gateway-vllm:/root/.cache/vllm"
OWN = "/state/engines/1234abcd:/run/vllm-gateway:Z"


SOCKET = Path("/state/engines/1234abcd/engine.sock")
MOUNT = {"Type": "bind", "Source": str(SOCKET.parent), "Destination": "/run/vllm-gateway"}


def config(launch: Launch = LAUNCH, *, network: str | None = None, **settings: Any) -> dict[str, Any]:
    socket = None if network else SOCKET
    return container_config(launch, Docker.model_validate(settings), "s", 8000, socket=socket, network=network)


def inspected(**changes: Any) -> dict[str, Any]:
    made = changes.pop("config", None) or config()
    there = {"Id": "c1", "Name": "/s_m_instance_2", "Config": made, "HostConfig": made["HostConfig"]}
    return {**there, "State": {"Running": True}, "NetworkSettings": {}, **changes}


def test_the_gpus_are_asked_for_by_id() -> None:
    assert config()["HostConfig"]["DeviceRequests"] == [
        {"Driver": "nvidia", "DeviceIDs": ["GPU-a", "GPU-b"], "Capabilities": [["gpu"]]}
    ]


def test_an_engine_listens_on_a_socket_in_a_folder_of_the_gateways_own() -> None:
    made = config()
    assert made["Cmd"] == ["--model", "m", "--uds", "/run/vllm-gateway/engine.sock"]
    assert made["HostConfig"]["Binds"][-1] == "/state/engines/1234abcd:/run/vllm-gateway:Z"
    assert not {"PortBindings", "NetworkMode"} & set(made["HostConfig"])
    assert "ExposedPorts" not in made
    assert made["Env"] == ["A=b=c"]


def test_on_a_network_an_engine_has_a_key_and_nothing_is_published() -> None:
    made = config(replace(LAUNCH, on_port=True, key="k1"), network="inner")
    assert made["Cmd"] == ["--model", "m", "--host", "0.0.0.0", "--port", "8000"]
    assert made["Env"] == ["A=b=c", "VLLM_API_KEY=k1"]
    assert made["HostConfig"]["NetworkMode"] == "inner"
    assert "PortBindings" not in made["HostConfig"]


def test_an_engine_has_no_power_that_it_does_not_need() -> None:
    host = config()["HostConfig"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["CHOWN", "DAC_OVERRIDE", "FOWNER"])
    assert host["PidsLimit"] >= 32_768
    assert host["Init"]


@pytest.mark.parametrize(
    ("settings", "there", "absent"),
    [
        ({}, {"IpcMode": "private", "ShmSize": 16 << 30}, "PortBindings"),
        ({"ipc": "host"}, {"IpcMode": "host"}, "ShmSize"),
        ({"shm_mib": 2}, {"IpcMode": "private", "ShmSize": 2 << 20}, "PortBindings"),
        ({}, {"Binds": ["vllm-gateway-huggingface:/root/.cache/huggingface", COMPILED, OWN]}, "PortBindings"),
        ({"cache_dir": "/models"}, {"Binds": ["/models:/root/.cache/huggingface", COMPILED, OWN]}, "PortBindings"),
        (
            {"cache_dir": "/c", "volumes": ["/m:/models:ro"]},
            {"Binds": ["/c:/root/.cache/huggingface", COMPILED, "/m:/models:ro", OWN]},
            "PortBindings",
        ),
    ],
)
def test_settings_reach_the_host_configuration(settings: dict[str, Any], there: dict[str, Any], absent: str) -> None:
    host = config(**settings)["HostConfig"]
    assert {name: host.get(name) for name in there} == there
    assert absent not in host


def test_what_is_written_on_a_container_is_read_again() -> None:
    there = found(inspected(State={"Running": False}), 8000)
    assert (there.name, there.model, there.number, there.spec_hash) == ("s_m_instance_2", "m", 2, "abc")
    assert (there.gpu_ids, there.footprint_mib, there.running) == (("GPU-a", "GPU-b"), 4096, None)


def test_where_an_engine_is_reached_is_read_off_its_container() -> None:
    assert running(inspected(Mounts=[MOUNT]), 8000).address == Address(path=str(SOCKET))
    keyed = config(replace(LAUNCH, on_port=True, key="k1"), network="inner")
    networks = {"Networks": {"inner": {"IPAddress": "172.18.0.2"}, "other": {"IPAddress": "172.19.0.2"}}}
    assert running(inspected(config=keyed, NetworkSettings=networks), 8000).address == Address(
        "172.18.0.2", 8000, key="k1"
    )
    gone = running(inspected(config=keyed), 8000)
    assert gone.address.port == 0


def test_a_container_of_the_release_before_is_reached_by_its_published_port() -> None:
    before = {
        "Labels": {"vllm-gateway.owner": "s", "vllm-gateway.model": "m", "vllm-gateway.instance": "2",
                   "vllm-gateway.spec": "abc"},
        "Env": ["A=b"],
        "HostConfig": {"NetworkMode": "default"},
    }  # fmt: skip
    published = {"Ports": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32768"}]}}
    there = found(inspected(config=before, NetworkSettings=published), 8000)
    assert there.running is not None
    assert (there.running.address, there.spec_hash) == (Address("127.0.0.1", 32768), "abc")


def test_to_the_release_before_an_engine_that_it_cannot_reach_does_not_match() -> None:
    assert config()["Labels"]["vllm-gateway.spec"] != "abc"


def test_labels_that_do_not_read_match_nothing() -> None:
    labelled = {"Labels": {"vllm-gateway.owner": "me", "vllm-gateway.instance": "two"}, "HostConfig": {}}
    there = found(inspected(config=labelled, State={"Running": False}), 8000)
    assert (there.model, there.number, there.spec_hash, there.gpu_ids) == ("", 0, "", ())


def test_the_name_that_labels_speak_of() -> None:
    there = inspected()
    assert name_by_labels(there) == name_of(there) == "s_m_instance_2"


@pytest.mark.parametrize("kept", [{}, {"DeviceRequests": None}, {"DeviceRequests": []}])
def test_an_engine_that_drops_the_request_for_gpus_is_found_out(kept: dict[str, Any]) -> None:
    with pytest.raises(StartError, match="Podman"):
        check_gpus(LAUNCH, {"HostConfig": kept})
    check_gpus(replace(LAUNCH, gpu_ids=()), {"HostConfig": kept})
    check_gpus(LAUNCH, {"HostConfig": config()["HostConfig"]})
