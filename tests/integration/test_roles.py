# SPDX-License-Identifier: Apache-2.0
"""Keys of each role at every door of a running gateway, before and after a reload."""

import signal
from pathlib import Path

import pytest
import yaml

from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.integration.test_gateway import config

DOORS = {
    ("GET", "/v1/models"): {"inference", "viewer", "admin"},
    ("POST", CHAT): {"inference", "viewer", "admin"},
    ("POST", "/tokenize"): {"inference", "viewer", "admin"},
    ("GET", "/metrics"): {"metrics", "viewer", "admin"},
    ("GET", "/gateway/status"): {"viewer", "admin"},
    ("HEAD", "/gateway/status"): {"viewer", "admin"},
    ("POST", "/gateway/status"): {"viewer", "admin"},
    ("GET", "/gateway/decisions?model=qwen2.5"): {"viewer", "admin"},
    ("GET", "/gateway/logs"): {"viewer", "admin"},
    ("GET", "/gateway/instances/x/logs?follow=true"): {"viewer", "admin"},
    ("GET", "/"): {"viewer", "admin"},
    ("POST", "/gateway/models/qwen2.5/retry"): {"admin"},
    ("GET", "/gateway/models/qwen2.5/retry"): {"admin"},
    ("GET", "/sleep"): {"inference", "metrics", "viewer", "admin"},
    ("GET", "/health"): {"inference", "metrics", "viewer", "admin", "nobody"},
}
ROLES = ("inference", "metrics", "viewer", "admin")


async def status_at(gateway: GatewayProcess, door: tuple[str, str], key: str) -> int:
    method, path = door
    body = {"model": "qwen2.5", "messages": [{"role": "user", "content": "Hi"}], "prompt": "x", "max_tokens": 1}
    sent = body if path in (CHAT, "/tokenize") else None
    headers = {"Authorization": f"Bearer {key}"}
    async with gateway.http.request(method, path, json=sent, headers=headers, allow_redirects=False) as reply:
        return reply.status


async def test_each_role_opens_its_doors_and_no_others(tmp_path: Path) -> None:
    keys = [{"name": f"the-{role}", "role": role, "key": f"secret-{role}"} for role in ROLES]
    # A path that is carried to engines does not become a client's by being the gateway's, too.
    server = {"api_keys": [*keys, "plain"], "extra_paths": ["GET /metrics", "POST /gateway/models/{name}/retry"]}
    async with running_gateway(tmp_path, config(server=server)) as gateway:
        for door, roles in DOORS.items():
            for role in (*ROLES, "nobody"):
                status = await status_at(gateway, door, f"secret-{role}")
                refused = 401 if role == "nobody" else 403
                assert (status == refused) == (role not in roles), (door, role, status)
            assert await status_at(gateway, door, "plain") not in (401, 403)
        log = str(gateway.lines)
        assert "secret-" not in log


async def test_keys_in_files_and_roles_change_with_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first-key\n")
    key = {"name": "somebody", "role": "viewer", "key_file": str(file)}
    async with running_gateway(tmp_path, config(server={"api_keys": [key]})) as gateway:
        look = ("GET", "/gateway/status")
        assert await status_at(gateway, look, "first-key") == 200
        file.write_text("second-key\n")
        gateway.process.send_signal(signal.SIGHUP)
        await gateway.event("config_reloaded")
        assert [await status_at(gateway, look, key) for key in ("first-key", "second-key")] == [401, 200]
        settings = yaml.safe_load(gateway.file.read_text())
        settings["server"]["api_keys"][0]["role"] = "metrics"
        gateway.file.write_text(yaml.safe_dump(settings))
        gateway.process.send_signal(signal.SIGHUP)
        await gateway.event("config_reloaded", count=2)
        assert await status_at(gateway, look, "second-key") == 403


@pytest.mark.parametrize("key", ["k", {"name": "chat", "key": "k"}])
async def test_openness_is_a_matter_of_any_key(tmp_path: Path, key: object) -> None:
    server = {"api_keys": [key], "host": "0.0.0.0"}
    async with running_gateway(tmp_path, config(server=server)) as gateway:
        assert await status_at(gateway, ("GET", "/v1/models"), "k") == 200
