# SPDX-License-Identifier: Apache-2.0
"""What is shipped to run the gateway with works as it is, and opens it to nobody but this machine."""

import json
import re
from configparser import RawConfigParser
from pathlib import Path

import pytest
import yaml

from vllm_gateway.cli.parser import parser
from vllm_gateway.configuration.loading import ConfigError, load_settings
from vllm_gateway.configuration.openness import is_loopback

ROOT = Path(__file__).parents[2]


def unit(name: str) -> RawConfigParser:
    read = RawConfigParser(strict=True)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string((ROOT / "deploy/systemd" / name).read_text("utf-8"))
    return read


def test_the_socket_unit_is_for_this_machine_alone() -> None:
    address = unit("vllm-gateway.socket")["Socket"]["ListenStream"]
    assert is_loopback(address.rpartition(":")[0])


def test_the_service_unit_starts_the_gateway() -> None:
    service = unit("vllm-gateway.service")
    program, *arguments = service["Service"]["ExecStart"].split()
    assert program.endswith("/vllm-gateway")
    assert parser().parse_args(arguments).config == Path("/etc/vllm-gateway/gateway.yaml")
    assert service["Unit"]["Requires"] == "vllm-gateway.socket"
    assert service["Service"]["WorkingDirectory"] == f"/var/lib/{service['Service']['StateDirectory']}"


def image_arguments() -> dict[str, object]:
    """What the image's command line sets."""
    (command,) = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    return {"server.host": parser().parse_args(json.loads(command)).host}


def test_the_image_serves_nobody_by_mistake() -> None:
    with pytest.raises(ConfigError, match="VLLM_GATEWAY_OPEN=true"):
        load_settings(ROOT / "config/gateway.yaml", {}, image_arguments())
    load_settings(ROOT / "config/gateway.yaml", {"VLLM_GATEWAY_API_KEYS": "k"}, image_arguments())


@pytest.mark.parametrize("keys", ["", "k"])
def test_compose_starts_it_and_publishes_it_to_this_machine_alone(keys: str) -> None:
    gateway = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["gateway"]
    environment = {
        name: re.sub(r"\$\{VLLM_GATEWAY_API_KEYS:-\}", keys, text) for name, text in gateway["environment"].items()
    }
    settings = load_settings(ROOT / "config/gateway.yaml", environment, image_arguments())
    assert settings.server.api_keys == ((keys,) if keys else ())
    assert all(is_loopback(published.split(":")[0]) for published in gateway["ports"])


@pytest.mark.parametrize("example", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_no_example_is_open(example: Path) -> None:
    server = load_settings(example, {}).server
    assert is_loopback(server.host)
    assert not server.open
