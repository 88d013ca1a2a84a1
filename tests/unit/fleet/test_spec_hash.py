# SPDX-License-Identifier: Apache-2.0
"""By the hash on its label a container is found to be what is wanted, by an upgrade too."""

from typing import Any

import pytest

from vllm_gateway.configuration.settings import Model, Settings
from vllm_gateway.fleet.engines import vllm
from vllm_gateway.simulator.arguments import parse_arguments

CONFIG: dict[str, Any] = {
    "docker": {"image": "vllm/vllm-openai:v0.11.0", "cache_dir": "/models", "volumes": ["/a:/b:ro"]},
    "hf_token": "t",
    "models": {
        "m": {
            "repository": "org/m",
            "engine_arguments": ["--max-model-len", "8192"],
            "environment": {"A": "b"},
            "sleep": "level_1",
            "tensor_parallel_size": 2,
        },
        "n": {"repository": "org/n"},
    },
}


def hash_of(name: str, **changes: Any) -> str:
    settings = Settings.model_validate({**CONFIG, **changes})
    return vllm.spec_hash(name, settings.models[name], settings)


def test_it_is_the_one_of_the_release_before() -> None:
    assert (hash_of("m"), hash_of("n")) == ("9c7a886bb4711b6f", "2e84724aef41825c")


def test_what_begins_with_a_dash_is_no_option() -> None:
    model = Model(repository="org/m")
    assert vllm.arguments("-dash", model, share=None) == ("--model", "org/m", "--served-model-name=-dash")
    read = parse_arguments(vllm.arguments("-dash.1", model, share=None))
    assert (read.model, read.name) == ("org/m", "-dash.1")


@pytest.mark.parametrize("ipc", [{"ipc": "host"}, {"ipc": "private", "shm_mib": 64}])
def test_how_a_container_is_confined_restarts_nothing(ipc: dict[str, Any]) -> None:
    assert hash_of("n", docker={**CONFIG["docker"], **ipc}) == hash_of("n")


def test_where_an_engine_listens_counts_once_it_is_said() -> None:
    assert hash_of("n", engine_address="port") != hash_of("n")
    assert hash_of("n", engine_address="port") != hash_of("n", engine_address="socket")
