# SPDX-License-Identifier: Apache-2.0
"""Behind real proxies, configured as docs/proxy.md says or not at all, a client gets what it would get without."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests import proxies
from tests.engines import set_faults
from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.integration.test_gateway import FAST, config, model

pytestmark = pytest.mark.asyncio(loop_scope="module")
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 30, "stream": True}
PREFIXED = "location /llm/ { proxy_pass http://vllm_gateway/; }\n"  # as "A path on a shared name" says
SETUPS = ("stock nginx", "nginx", "caddy")


@dataclass(frozen=True, slots=True)
class Fronted:
    gateway: GatewayProcess
    engine: str
    clients: dict[str, aiohttp.ClientSession]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fronted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fronted]:
    """One gateway, and in front of it each proxy."""
    folder = tmp_path_factory.mktemp("gateway")
    cold = {setup: model("slow", environment={**FAST, "SIM_LOAD_S": "2.5"}, cold_start="keepalive") for setup in SETUPS}
    models = {"m": model("m"), **{f"cold for {setup}": settings for setup, settings in cold.items()}}
    server = {"hosts": [proxies.NAME], "trusted_proxies": ["127.0.0.1"]}
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(running_gateway(folder, config(gpus=4, models=models, server=server)))
        assert (await gateway.chat("m"))[0] == 200
        (engine,) = (await gateway.status())["active_containers_by_name"].values()
        clients = {
            setup: await in_front(stack, setup, tmp_path_factory.mktemp("proxy"), gateway.url.removeprefix("http://"))
            for setup in SETUPS
        }
        yield Fronted(gateway, engine["address"], clients)


async def in_front(stack: AsyncExitStack, setup: str, folder: Path, behind: str) -> aiohttp.ClientSession:
    """Starts the proxy; returns a client of it."""
    port = proxies.free_port()
    if setup == "stock nginx":
        servers = f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://{behind}; }} }}"
        await stack.enter_async_context(proxies.nginx(folder, servers, port))
        return await stack.enter_async_context(proxies.client(port))
    shown = proxies.certificate(folder)
    places = {"127.0.0.1:8000": behind}
    if setup == "nginx":
        listen = f"listen 127.0.0.1:{port} ssl; ssl_certificate {shown.chain}; ssl_certificate_key {shown.key};"
        servers = proxies.put(proxies.documented("nginx"), **places, **{"listen 443 ssl;": listen})
        private = proxies.documented("What not to pass on")
        servers = servers.rstrip().removesuffix("}") + private + PREFIXED + "}"
        await stack.enter_async_context(proxies.nginx(folder, servers, port))
    else:
        site = f"https://{proxies.NAME}:{port} {{\n    tls {shown.chain} {shown.key}"
        sites = proxies.put(proxies.documented("Caddy"), **places, **{f"{proxies.NAME} {{": site})
        await stack.enter_async_context(proxies.caddy(folder, sites, port))
    return await stack.enter_async_context(proxies.client(port, shown.trusted, of="127.0.0.2"))


@pytest.mark.parametrize("setup", SETUPS)
async def test_a_stream_comes_as_it_is_made(fronted: Fronted, setup: str) -> None:
    await set_faults(fronted.engine, "hold_after_tokens=5")
    try:
        async with fronted.clients[setup].post(CHAT, json=BODY) as reply:
            assert reply.status == 200
            for _ in range(5):
                assert (await reply.content.readuntil(b"\n\n")).startswith(b"data: {")
            await set_faults(fronted.engine)
            assert (await reply.content.read()).endswith(b"data: [DONE]\n\n")
    finally:
        await set_faults(fronted.engine)


@pytest.mark.parametrize("setup", SETUPS)
async def test_a_client_that_leaves_ends_the_work(fronted: Fronted, setup: str) -> None:
    await set_faults(fronted.engine, "hold_after_tokens=5")
    try:
        reply = await fronted.clients[setup].post(CHAT, json=BODY, headers={"X-Request-Id": f"left {setup}"})
        await reply.content.readuntil(b"\n\n")
        reply.close()
        await fronted.gateway.event("request_finished", request_id=f"left {setup}", outcome="client_gone")
    finally:
        await set_faults(fronted.engine)


@pytest.mark.parametrize("setup", SETUPS)
async def test_a_cold_start_is_heard_of(fronted: Fronted, setup: str) -> None:
    async with fronted.clients[setup].post(CHAT, json={**BODY, "model": f"cold for {setup}"}) as reply:
        assert (await reply.content.readuntil(b"\n\n")).startswith(b": starting cold")
        assert not fronted.gateway.events("instance_ready", model=f"cold for {setup}")
        assert (await reply.content.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("setup", ["nginx", "caddy"])
async def test_what_is_documented_holds(fronted: Fronted, setup: str) -> None:
    http = fronted.clients[setup]
    large = io.BytesIO(json.dumps({**BODY, "stream": False, "metadata": {"picture": "x" * 3_000_000}}).encode())
    headers = {"X-Request-Id": f"large {setup}", "Content-Type": "application/json"}
    async with http.post(CHAT, data=large, headers=headers) as reply:
        assert reply.status == 200, "a large body passes"
    line = await fronted.gateway.event("request_finished", request_id=f"large {setup}")
    assert line["client"] == "127.0.0.2", "the gateway is told whose it is"


async def test_what_is_for_operators_stays_inside(fronted: Fronted) -> None:
    for path, status in (("/gateway/status", 404), ("/metrics", 404), ("/v1/models", 200), ("/llm/v1/models", 200)):
        async with fronted.clients["nginx"].get(path) as reply:
            assert reply.status == status, path
