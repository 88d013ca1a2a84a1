# SPDX-License-Identifier: Apache-2.0
"""Who takes over, or is taken over, may fall silent: the other is held up for a bounded time, and one decides."""

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.waiting import until
from vllm_gateway.configuration.settings import Server, Settings
from vllm_gateway.fleet.predecessor import CannotTakeOver, Work
from vllm_gateway.service import handover
from vllm_gateway.service.control_socket import ControlSocket
from vllm_gateway.service.handover import Predecessor, Successor

SHORT_S = 0.3


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SILENT_S", SHORT_S), ("FIRST_WORD_S", 2 * SHORT_S), ("ALIVE_S", SHORT_S / 10)):
        monkeypatch.setattr(handover, name, seconds)


class Old:
    """The one that is taken over, less all that it serves."""

    def __init__(self, control: ControlSocket) -> None:
        self.decides = True
        self.successor = Successor(
            control, lambda *_, **__: None, give=self._give, take_back=self._take_back, work=self._work, refuse=_never
        )

    async def _give(self) -> Sequence[socket.socket]:
        self.decides = False
        return ()

    def _take_back(self) -> None:
        self.decides = True

    @staticmethod
    def _work() -> Work:
        return Work(waiting={"a": 1})


def _never(*_: object) -> None:
    raise AssertionError


def control_in(folder: str) -> ControlSocket:
    settings = Settings(server=Server(control_socket=f"{folder}/control.sock"))
    return ControlSocket(settings, 8000, lambda *_, **__: None)


@asynccontextmanager
async def an_old_one() -> AsyncIterator[tuple[Old, str]]:
    with tempfile.TemporaryDirectory() as folder:
        old = Old(control_in(folder))
        assert old.successor.open()
        coming = asyncio.create_task(old.successor.come())
        try:
            yield old, folder
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            old.successor.close()


async def asked_by_hand(folder: str) -> socket.socket:
    """A successor that says what the test has it say."""
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    await loop.sock_connect(connection, f"{folder}/control.sock")
    await loop.sock_sendall(connection, b'"take over"\n')
    return connection


async def last_line(connection: socket.socket) -> dict[str, object]:
    """At its end."""
    data = b""
    while block := await asyncio.get_running_loop().sock_recv(connection, 65536):
        data += block
    found: dict[str, object] = json.loads(data.splitlines()[-1])
    return found


async def test_one_that_says_nothing_more_is_given_up_and_told_so() -> None:
    async with an_old_one() as (old, folder):
        with await asked_by_hand(folder) as new:
            await until(lambda: not old.decides)
            await until(lambda: old.decides)
            assert "not told in time" in str((await last_line(new))["refused"])
        with await asked_by_hand(folder):
            await until(lambda: not old.decides)


async def test_one_that_says_that_it_lives_has_its_time_until_it_falls_silent() -> None:
    async with an_old_one() as (old, folder):
        with await asked_by_hand(folder) as new:
            await until(lambda: not old.decides)
            for _ in range(20):
                await asyncio.get_running_loop().sock_sendall(new, b'"alive"\n')
                await asyncio.sleep(SHORT_S / 6)
                assert not old.decides
            await until(lambda: old.decides)


@asynccontextmanager
async def a_new_one(folder: str) -> AsyncIterator[Predecessor]:
    found = await Predecessor.find(control_in(folder))
    assert found is not None
    following = asyncio.create_task(found.follow(["a"]))
    try:
        yield found
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_one_that_takes_long_and_lives_is_accepted() -> None:
    async with an_old_one() as (old, folder), a_new_one(folder) as found:
        living = asyncio.create_task(found.say_alive())
        await asyncio.sleep(3 * SHORT_S)  # more than it would have without a word
        assert not old.decides
        ready = asyncio.create_task(found.say_ready())
        await until(lambda: old.successor.has_come)
        reporting = asyncio.create_task(old.successor.report())
        await ready
        await living
        assert found.work.waiting == {"a": 1}
        assert not found.gone
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        await until(lambda: found.gone)
        assert not found.work.waiting, "what one that stands still has to do is kept up for nobody"
        again = asyncio.create_task(old.successor.report())
        await until(lambda: not found.gone)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)


async def test_one_that_was_given_up_does_not_go_on_beside_the_old_one() -> None:
    async with an_old_one() as (old, folder), a_new_one(folder) as found:
        await until(lambda: old.decides and found.gone)  # it has said nothing
        with pytest.raises(CannotTakeOver, match="goes on"):
            await found.say_ready()
        assert not old.successor.has_come


async def test_an_old_one_that_died_meanwhile_is_in_nobodys_way() -> None:
    async with an_old_one() as (_, folder):
        found = await Predecessor.find(control_in(folder))
        assert found is not None
    following = asyncio.create_task(found.follow(["a"]))
    await until(lambda: found.gone)
    await found.say_ready()
    await following
