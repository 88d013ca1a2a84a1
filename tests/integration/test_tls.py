# SPDX-License-Identifier: Apache-2.0
"""TLS at the door: both lanes, certificates that change, clients that show theirs, and what is no TLS at all."""

import asyncio
import os
import signal
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from yarl import URL

from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.integration.front.house import LANES
from tests.integration.test_gateway import config
from tests.waiting import LIMIT_S, until

NAME = "localhost"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    return write(tmp_path, authority)


def write(folder: Path, authority: trustme.CA) -> dict[str, str]:
    issued = authority.issue_cert(NAME, "127.0.0.1")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    key.touch(mode=0o600)
    key.write_bytes(issued.private_key_pem.bytes())
    return {"certificate": str(certificate), "key": str(key)}


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def served(tls: dict[str, str]) -> dict[str, Any]:
    return config(server={"tls": tls})


async def raw(gateway: GatewayProcess, sent: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """All that comes back until the gateway closes."""
    url = URL(gateway.url)
    name = NAME if context else None
    reader, writer = await asyncio.open_connection(url.host, url.port, ssl=context, server_hostname=name)
    try:
        writer.write(sent)
        async with asyncio.timeout(LIMIT_S):
            return await reader.read()
    finally:
        writer.close()


async def serial_of(gateway: GatewayProcess, context: ssl.SSLContext) -> str:
    url = URL(gateway.url)
    _, writer = await asyncio.open_connection(url.host, url.port, ssl=context, server_hostname=NAME)
    serial: str = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return serial


@pytest.mark.parametrize("lane", LANES)
async def test_replies_and_streams_in_both_lanes(
    lane: str, authority: trustme.CA, files: dict[str, str], tmp_path: Path
) -> None:
    async with running_gateway(tmp_path, served(files)) as gateway:
        assert gateway.url.startswith("https://")
        body = b'{"model": "qwen2.5", "stream": true, "max_tokens": 20, "messages": [{"role": "user", "content": "x"}]}'
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\nContent-Type: application/json\r\n".encode()
            + LANES[lane]
        )
        sent = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        reply = await raw(gateway, sent, trusting(authority))
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert b"data: [DONE]" in reply
        large = {"model": "qwen2.5", "prompt": "word " * 200_000, "max_tokens": 1}
        async with gateway.http.post("/v1/completions", json=large, ssl=trusting(authority)) as answer:
            assert answer.status == 400  # longer than the context, says the engine: all of it has come through


async def test_plain_http_is_told_to_use_https(authority: trustme.CA, files: dict[str, str], tmp_path: Path) -> None:
    async with running_gateway(tmp_path, served(files)) as gateway:
        reply = await raw(gateway, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"tls_required"' in reply
        assert b"https://" in reply
        assert (await gateway.event("request_finished"))["outcome"] == "tls_required"
        await raw(gateway, b"\x16\x03\x01\x00\x05hello")
        assert (await gateway.event("tls_handshake_failed"))["client"] == "127.0.0.1"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_old_versions_of_tls_are_refused(authority: trustme.CA, files: dict[str, str], tmp_path: Path) -> None:
    async with running_gateway(tmp_path, served(files)) as gateway:
        context = trusting(authority)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):  # whichever comes first, the alert or the end
            await raw(gateway, b"", context)


async def test_a_silent_client_is_let_go(authority: trustme.CA, files: dict[str, str], tmp_path: Path) -> None:
    silent = config(server={"tls": files, "head_timeout_s": 0.3})
    async with running_gateway(tmp_path, silent) as gateway:
        assert await raw(gateway, b"") == b""
        assert await raw(gateway, b"\x16\x03\x01") == b"", "a handshake that stops"


async def test_the_end_does_not_wait_for_silent_clients(files: dict[str, str], tmp_path: Path) -> None:
    async with running_gateway(tmp_path, served(files)) as gateway:
        url = URL(gateway.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        gateway.process.terminate()
        assert await reader.read() == b""
        writer.close()


async def test_a_renewed_certificate_is_used_without_a_restart(
    authority: trustme.CA, files: dict[str, str], tmp_path: Path
) -> None:
    async with running_gateway(tmp_path, served(files)) as gateway:
        first = await serial_of(gateway, trusting(authority))
        Path(files["key"]).write_bytes(b"half of it")
        await gateway.event("tls_reload_failed")
        assert await serial_of(gateway, trusting(authority)) == first, "what was read before still counts"
        write(tmp_path, authority)

        async def is_renewed() -> bool:
            return await serial_of(gateway, trusting(authority)) != first

        await until(is_renewed)
        await gateway.event("tls_loaded")


async def test_clients_show_a_certificate(authority: trustme.CA, files: dict[str, str], tmp_path: Path) -> None:
    clients = trustme.CA()
    accepted = tmp_path / "clients.pem"
    clients.cert_pem.write_to_path(str(accepted))
    async with running_gateway(tmp_path, served({**files, "client_ca": str(accepted)})) as gateway:
        with pytest.raises((ssl.SSLError, aiohttp.ClientError, ConnectionError)):
            async with gateway.http.get("/health", ssl=trusting(authority)):
                pass
        context = trusting(authority)
        clients.issue_cert("client@example.com").configure_cert(context)
        async with gateway.http.get("/health", ssl=context) as reply:
            assert reply.status == 200


async def test_a_key_that_all_can_read_is_a_warning(files: dict[str, str], tmp_path: Path) -> None:
    Path(files["key"]).chmod(0o644)
    async with running_gateway(tmp_path, served(files)) as gateway:
        await gateway.event("tls_key_exposed")


async def test_a_pipe_in_the_place_of_a_file_stops_no_later_reload(files: dict[str, str], tmp_path: Path) -> None:
    async with running_gateway(tmp_path, served(files)) as gateway:
        for path in (Path(files["certificate"]), gateway.file):
            content = path.read_bytes()
            path.unlink()
            os.mkfifo(path)
            seen = len(gateway.events("config_reload_failed"))
            gateway.process.send_signal(signal.SIGHUP)
            failed = await gateway.event("config_reload_failed", count=seen + 1)
            assert "not a plain file" in failed["problems"][0]
            path.unlink()
            path.write_bytes(content)
        gateway.process.send_signal(signal.SIGHUP)
        await gateway.event("config_reloaded")


async def test_the_advice_is_noticed_when_it_is_taken_and_everything_is_said_once(
    files: dict[str, str], tmp_path: Path
) -> None:
    async with running_gateway(tmp_path, served(files)) as gateway:
        key = Path(files["key"])
        key.chmod(0o666)
        assert "chmod 600" in (await gateway.event("tls_reload_failed"))["problem"]
        key.chmod(0o600)
        await gateway.event("tls_loaded")
        assert len(gateway.events("tls_reload_failed")) == len(gateway.events("tls_loaded")) == 1
