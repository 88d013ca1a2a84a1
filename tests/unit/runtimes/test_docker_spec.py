# SPDX-License-Identifier: Apache-2.0
"""What Docker is asked for, without Docker."""

from typing import Any

import pytest

from vllm_gateway.configuration.settings import Docker
from vllm_gateway.fleet.runtimes import Launch
from vllm_gateway.fleet.runtimes.docker_spec import container_config, found

LAUNCH = Launch("s_m_instance_2", "m", 2, "image:1", ("--model", "m"), {"A": "b=c"}, ("GPU-a", "GPU-b"), 4096, "abc")

COMPILED = "vllm-gateway-vllm:/root/.cache/vllm"


def config(**settings: Any) -> dict[str, Any]:
    return container_config(LAUNCH, Docker.model_validate(settings), "me", 8000)


def test_the_gpus_are_asked_for_by_id() -> None:
    assert config()["HostConfig"]["DeviceRequests"] == [
        {"Driver": "nvidia", "DeviceIDs": ["GPU-a", "GPU-b"], "Capabilities": [["gpu"]]}
    ]


def test_the_engine_is_published_on_loopback_alone() -> None:
    made = config()
    assert made["HostConfig"]["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert made["Cmd"] == ["--model", "m", "--host", "0.0.0.0", "--port", "8000"]
    assert made["Env"] == ["A=b=c"]


def test_on_a_network_nothing_is_published() -> None:
    host = config(network="inner")["HostConfig"]
    assert host["NetworkMode"] == "inner"
    assert "PortBindings" not in host


@pytest.mark.parametrize(
    ("settings", "there", "absent"),
    [
        ({}, {"IpcMode": "host"}, "ShmSize"),
        ({"ipc": "private", "shm_mib": 2}, {"ShmSize": 2 << 20}, "IpcMode"),
        ({}, {"Binds": ["vllm-gateway-huggingface:/root/.cache/huggingface", COMPILED]}, "ShmSize"),
        ({"cache_dir": "/models"}, {"Binds": ["/models:/root/.cache/huggingface", COMPILED]}, "ShmSize"),
        (
            {"cache_dir": "/c", "volumes": ["/m:/models:ro"]},
            {"Binds": ["/c:/root/.cache/huggingface", COMPILED, "/m:/models:ro"]},
            "ShmSize",
        ),
    ],
)
def test_settings_reach_the_host_configuration(settings: dict[str, Any], there: dict[str, Any], absent: str) -> None:
    host = config(**settings)["HostConfig"]
    assert {name: host.get(name) for name in there} == there
    assert absent not in host


def test_what_is_written_on_a_container_is_read_again() -> None:
    inspected = {"Id": "c1", "Name": "/s_m_instance_2", "Config": config(), "State": {"Running": False}}
    there = found(inspected, Docker.model_validate({}), 8000)
    assert (there.name, there.model, there.number, there.spec_hash) == ("s_m_instance_2", "m", 2, "abc")
    assert (there.gpu_ids, there.footprint_mib, there.running) == (("GPU-a", "GPU-b"), 4096, None)


def test_labels_that_do_not_read_match_nothing() -> None:
    labelled = {"Labels": {"vllm-gateway.owner": "me", "vllm-gateway.instance": "two"}}
    inspected = {"Id": "c1", "Name": "/x", "Config": labelled, "State": {"Running": False}}
    there = found(inspected, Docker.model_validate({}), 8000)
    assert (there.model, there.number, there.spec_hash, there.gpu_ids) == ("", 0, "", ())
