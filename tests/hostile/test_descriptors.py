# SPDX-License-Identifier: Apache-2.0
"""Clients may use up the connections that there are for them, and never what engines, probes and files need."""

import asyncio
import resource
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.integration.test_gateway import FAST, config, model
from tests.integration.test_reload import reload
from tests.waiting import until
from vllm_gateway.configuration.settings import Model, Settings
from vllm_gateway.service.descriptors import share_out

BODY = b'{"model":"a","max_tokens":5,"messages":[{"role":"user","content":"x"}]}'
HEAD = (
    f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
)
LIMITS = (128, 256)


async def connect(gateway: GatewayProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = gateway.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def ask(gateway: GatewayProcess) -> bytes:
    reader, writer = await connect(gateway)
    writer.write(HEAD.encode() + BODY)
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return reply.partition(b"\r\n")[0]


async def test_more_clients_than_descriptors_wait_for_a_cold_model_and_are_all_answered(tmp_path: Path) -> None:
    slow = model("a", environment={**FAST, "SIM_LOAD_S": "1.5"})
    async with running_gateway(tmp_path, config(models={"a": slow}), open_files=LIMITS) as gateway:
        assert resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)[0] == LIMITS[1]
        short = await gateway.event("descriptors_short")
        assert short["limit"] == LIMITS[1] < short["needed"]
        assert short["connections"] < LIMITS[1] / 2
        async with asyncio.timeout(60):
            replies = await asyncio.gather(*(ask(gateway) for _ in range(300)))
        assert set(replies) == {b"HTTP/1.1 200 OK"}
        assert len(gateway.events("connections_full")) == 1
        assert len(gateway.events("instance_starting")) == 1
        assert not gateway.events("instance_failed")
        assert not gateway.events("instance_suspect")


async def test_idle_connections_make_room_for_those_who_ask(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(models={"a": model("a")}), open_files=LIMITS) as gateway:
        most = (await gateway.event("descriptors_short"))["connections"]
        idle = [await connect(gateway) for _ in range(2 * most)]
        assert await ask(gateway) == b"HTTP/1.1 200 OK"
        async with gateway.http.get("/metrics") as reply:
            shown = dict(
                line.split() for line in (await reply.text()).splitlines() if line.startswith("vllm_gateway_conn")
            )
        assert float(shown["vllm_gateway_connections_most"]) == most
        assert 0 < float(shown["vllm_gateway_connections"]) <= most
        assert await asyncio.wait_for(idle[0][0].read(), 5) == b"", "the longest idle one"
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()


async def test_a_reload_shares_them_out_anew(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(models={"a": model("a")}), open_files=(512, 512)) as gateway:
        await gateway.event("descriptors_short")
        await reload(gateway, tmp_path, config(models={"a": model("a")}, queue_size=10, max_in_flight=10))
        await reload(gateway, tmp_path, config(models={"a": model("a")}), count=2)
        await until(lambda: len(gateway.events("descriptors_short")) == 2)


@given(st.integers(16, 1 << 20), st.integers(0, 20), st.integers(1, 8), st.integers(1, 1000))
def test_connections_and_what_they_need_leave_a_reserve(limit: int, models: int, instances: int, places: int) -> None:
    settings = Settings(
        models={f"m{number}": Model(repository="r", instances=instances) for number in range(models)},
        max_in_flight=places,
    )
    found = share_out(limit, settings)
    to_engines = min(found.connections, models * instances * places)
    assert 0 < found.connections <= limit
    assert found.connections + to_engines <= limit - min(128 + 8 * models * instances, limit // 2)
    if limit >= found.needed:
        assert found.connections >= models * instances * places + settings.queue_size * models
