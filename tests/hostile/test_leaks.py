# SPDX-License-Identifier: Apache-2.0
"""An engine that prints all it was given, and dies: none of its secrets is seen anywhere."""

import json
import sys
from pathlib import Path

import pytest

from tests.gateway import running_gateway
from tests.integration.test_gateway import config, model
from vllm_gateway.telemetry.secrets import MASK

TOKEN, KEY, OTHER, ARGUMENT = "hf_tokenAbCdEf0123456789", "sk-client+key/0123456789", "w&b pass=word", "arg-secret-987"
SECRETS = {TOKEN, KEY, OTHER, ARGUMENT, "proxy-pa55"}
TALKATIVE = """
import json, os, sys, time
from urllib.parse import quote
token, other = os.environ["HF_TOKEN"], os.environ["WANDB_PASSWORD"]
for text in (
    f"token {token}", f"twice {token}{token}", f"url https://user:{token}@huggingface.co/x",
    f"quoted {quote(other, safe='')}", f"environment {dict(os.environ)}", json.dumps(dict(os.environ)),
    f"arguments {sys.argv}", f"key {os.environ['SAID_BY_HAND']}",
    f"RuntimeError: cannot log in with {token}",
):
    print(text, file=sys.stderr, flush=True)
half = len(token) // 2
for part in ("in two ", token[:half]), (token[half:], chr(10)):
    print(*part, sep="", end="", flush=True)
    time.sleep(0.05)
sys.exit(3)
"""


@pytest.fixture
def settings() -> dict[str, object]:
    given = {"WANDB_PASSWORD": OTHER, "HTTP_PROXY": "http://me:proxy-pa55@proxy:1", "SAID_BY_HAND": KEY}
    models = {"a": model("a", environment=given, engine_arguments=["--hf-token", ARGUMENT])}
    return config(
        process={"command": [sys.executable, "-c", TALKATIVE]},
        models=models,
        server={"api_keys": [KEY]},
        hf_token=TOKEN,
    )


async def test_no_secret_of_an_engine_is_seen(settings: dict[str, object], tmp_path: Path) -> None:
    async with running_gateway(tmp_path, settings) as gateway:
        gateway.http.headers["Authorization"] = f"Bearer {KEY}"
        seen = [json.dumps(await gateway.chat("a"), default=str) for _ in range(2)]
        page = await gateway.status()
        async with gateway.http.get("/metrics") as reply:
            seen.append(await reply.text())
        async with gateway.http.get("/gateway/instances/vllm_server_a_instance_1/logs") as reply:
            seen.append(await reply.text())
            assert f"twice {MASK}" in seen[-1]
        shown = "\n".join(page["models"]["a"]["log_tail"])
        assert f"token {MASK}\ntwice {MASK}\nurl https://{MASK}@huggingface.co/x\nquoted {MASK}\n" in shown
        assert f"in two {MASK}" in shown
        assert page["models"]["a"]["last_error"].endswith(f"RuntimeError: cannot log in with {MASK}")
        seen += [json.dumps(page), *map(json.dumps, gateway.lines)]
        for text in seen:
            assert not {secret for secret in SECRETS if secret in text}, text
        assert "RuntimeError" not in seen[0], "clients get the reason in short"
        assert f"failure {page['models']['a']['failure_id']}" in seen[1]
