# SPDX-License-Identifier: Apache-2.0
"""Other processes of the machine: peers of the control socket, and who may read and reach what the gateway makes."""

import asyncio
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import config, model

ENDPOINTS = {"runtime": "process", "models": {"a": {"endpoints": ["http://127.0.0.1:9"]}}}


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def settings(control: Path) -> dict[str, Any]:
    return {**ENDPOINTS, "server": {"control_socket": str(control)}}


@pytest.fixture
def crowd() -> Iterator[ExitStack]:
    """Connections that end with the test."""
    with ExitStack() as stack:
        yield stack


def connect(control: Path, crowd: ExitStack, says: bytes = b"") -> socket.socket:
    peer = crowd.enter_context(socket.socket(socket.AF_UNIX))
    peer.connect(str(control))
    peer.sendall(says)
    return peer


def taking_over(gateway: GatewayProcess) -> list[str]:
    return ["--port", str(URL(gateway.url).port), "--take-over"]


async def test_silent_peers_hold_nobody_up(
    tmp_path: Path, control: Path, settings: dict[str, Any], crowd: ExitStack
) -> None:
    async with running_gateway(tmp_path / "0", settings) as first:
        for says in (b"", b'"take', b"x" * 100_000, b"[[[[", b'"ready"\n', b"\xff\n", *[b""] * 20):
            connect(control, crowd, says)
        async with running_gateway(tmp_path / "1", settings, arguments=taking_over(first)) as second:
            await first.event("gateway_handed_over")
            assert second.url == first.url
            assert await first.process.wait() == 0


async def test_while_one_takes_over_another_is_told_so(
    tmp_path: Path, control: Path, settings: dict[str, Any], crowd: ExitStack
) -> None:
    async with running_gateway(tmp_path, settings) as gateway:
        first = connect(control, crowd, b'"take over"\n')
        assert b'"refused": null' in await asyncio.to_thread(first.recv, 4096)
        other = connect(control, crowd, b'"take over"\n')
        said = json.loads(await asyncio.to_thread(other.recv, 4096))
        assert "another gateway is taking over right now" in said["refused"]
        first.close()
        async with asyncio.timeout(10):
            while True:
                third = connect(control, crowd, b'"take over"\n')
                if b'"refused": null' in await asyncio.to_thread(third.recv, 4096):
                    break
        third.close()
        assert not gateway.events("gateway_handed_over")


async def test_a_place_that_becomes_free_is_taken(
    tmp_path: Path, control: Path, settings: dict[str, Any], crowd: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.write_text("somebody's")
    async with running_gateway(tmp_path / "0", settings) as first:
        problem = await first.event("control_socket_problem")
        assert problem["path"] == str(control)
        assert control.read_text() == "somebody's"
        control.unlink()
        async with asyncio.timeout(20):
            while not control.is_socket():
                await asyncio.sleep(0.1)
        async with running_gateway(tmp_path / "1", settings, arguments=taking_over(first)):
            await first.event("gateway_handed_over")
            assert await first.process.wait() == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as somebody else")
async def test_who_takes_over_tells_nothing_to_a_socket_of_somebody_else(
    tmp_path: Path, control: Path, settings: dict[str, Any]
) -> None:
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(control))
        theirs.listen()
        theirs.setblocking(False)
        os.chown(control, 12345, 12345)
        async with running_gateway(tmp_path, settings, arguments=["--take-over"]) as gateway:
            await gateway.event("control_socket_problem", path=str(control))
            with pytest.raises(BlockingIOError):
                theirs.accept()


async def test_what_the_gateway_makes_is_for_its_user_alone(tmp_path: Path) -> None:
    made, temporary = tmp_path / "made", tmp_path / "tmp"
    temporary.mkdir()
    settings = config(
        models={"a": {k: v for k, v in model("a").items() if k != "footprint_mib"}},
        memory_footprint_file=str(made / "kept" / "footprints.json"),
        record_trace=str(made / "trace.jsonl"),
        server={"socket": str(made / "http.sock"), "socket_mode": "0660"},
    )
    made.mkdir()
    environment = {"TMPDIR": str(temporary), "HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": ""}
    previous = os.umask(0)
    try:
        async with running_gateway(tmp_path / "0", settings, environment) as gateway:
            assert gateway.url == f"unix:{made}/http.sock"
            assert (await gateway.chat("a"))[0] == 200
            async with asyncio.timeout(10):
                while not (made / "kept" / "footprints.json").exists():
                    await asyncio.sleep(0.05)
            seen = {path: path.lstat() for folder in (made, temporary) for path in folder.rglob("*")}
            names = {path.name for path in seen}
            assert {"footprints.json", "trace.jsonl", "http.sock"} < names
            assert any(name.startswith("control-") for name in names)
            assert any(name.startswith("vllm-gateway-gpus-") for name in names)
            for path, status in seen.items():
                open_to = stat.S_IMODE(status.st_mode) & 0o077
                inside = any(seen[one].st_mode & 0o077 == 0 for one in path.parents if one in seen)
                assert not open_to or inside or path.is_symlink() or path.name == "http.sock", (path, oct(open_to))
            assert stat.S_IMODE(seen[made / "http.sock"].st_mode) == 0o660
    finally:
        os.umask(previous)
    assert not (made / "http.sock").exists(), "nobody listens there any more"
    assert not [path for path in temporary.rglob("*") if not path.is_dir()]
