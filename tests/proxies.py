# SPDX-License-Identifier: Apache-2.0
"""Real proxies in front of a gateway, with the configurations that the docs show: nothing but places is changed."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import trustme

from tests.lab import packages
from tests.lab.errors import LabUnavailableError
from tests.lab.shell import SYSTEM_PATH
from tests.waiting import LIMIT_S, until

NAME = "llm.example.com"
PAGE = Path(__file__).parents[1] / "docs" / "proxy.md"


def required(command: str) -> str:
    """Where it is; what is missing is installed. Where that cannot be the test is skipped."""
    try:
        packages.install({command: packages.PROXIES[command]})
    except LabUnavailableError as error:
        pytest.skip(f"{command} cannot be had here: {error}")
    found = shutil.which(command, path=SYSTEM_PATH)
    assert found is not None
    return found


def documented(heading: str) -> str:
    """The first block of code below it."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(r"```\w*\n(.*?)```", section, re.DOTALL)
    assert found is not None, heading
    return found[1]


def put(text: str, **places: str) -> str:
    """The text with other places in it."""
    for was, now in places.items():
        assert text.count(was) == 1, was
        text = text.replace(was, now)
    return text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Certificate:
    chain: Path
    key: Path
    trusted: ssl.SSLContext


def certificate(folder: Path) -> Certificate:
    authority = trustme.CA()
    issued = authority.issue_cert(NAME)
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return Certificate(chain, key, context)


@asynccontextmanager
async def nginx(folder: Path, servers: str, port: int) -> AsyncIterator[None]:
    """`servers`: what stands in `http`; all else is as nginx has it."""
    places = "".join(f"{one}_temp_path {folder}/{one};" for one in ("proxy", "client_body", "fastcgi", "uwsgi", "scgi"))
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off; {places}\n{servers}\n}}\n"
    )
    async with _running(
        folder, port, required("nginx"), "-p", str(folder), "-e", f"{folder}/error.log", "-c", str(file)
    ):
        yield


@asynccontextmanager
async def caddy(folder: Path, sites: str, port: int) -> AsyncIterator[None]:
    """`sites`: the Caddyfile; it keeps its own files in the folder, and asks nobody for certificates."""
    file = folder / "Caddyfile"
    file.write_text(f"{{\nadmin off\nauto_https disable_redirects\nskip_install_trust\n}}\n{sites}")
    command = (required("caddy"), "run", "--adapter", "caddyfile", "--config", str(file))
    async with _running(folder, port, *command):
        yield


@asynccontextmanager
async def _running(folder: Path, port: int, *command: str) -> AsyncIterator[None]:
    """Until the block ends; it is there once it takes connections."""
    own = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    log = folder / "log.txt"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out, env={**os.environ, **own})

    async def listens() -> bool:
        assert process.returncode is None, log.read_text()
        with contextlib.suppress(OSError):
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            return True
        return False

    try:
        await until(listens)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(LIMIT_S):
            await process.wait()


@asynccontextmanager
async def client(
    port: int, trusted: ssl.SSLContext | None = None, *, of: str = "127.0.0.1"
) -> AsyncIterator[aiohttp.ClientSession]:
    """Asks for NAME at the port, whoever listens there; `of`: where it comes from."""
    connector = aiohttp.TCPConnector(local_addr=(of, 0), ssl=trusted or True, resolver=_Here())
    url = f"{'https' if trusted else 'http'}://{NAME}:{port}"
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=aiohttp.ClientTimeout(total=2 * LIMIT_S)
    ) as http:
        yield http


class _Here(aiohttp.abc.AbstractResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        pass
