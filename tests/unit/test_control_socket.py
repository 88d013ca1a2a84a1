# SPDX-License-Identifier: Apache-2.0
"""The place of the control socket is this user's alone; whoever else lies there is told of, and left alone."""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_gateway.configuration.settings import Server, Settings
from vllm_gateway.service.control_socket import ControlSocket
from vllm_gateway.service.unix_sockets import bind_unix
from vllm_gateway.telemetry.events import CONTROL_SOCKET_PROBLEM

ME = os.getuid()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As on a machine where nothing has been made yet. Paths of sockets must be shorter than `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="c-") as folder:
        (Path(folder) / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", f"{folder}/tmp")
        monkeypatch.setenv("HOME", f"{folder}/home")
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        yield Path(folder)


class Opened:
    """A control socket of port 8000, closed at the end."""

    def __init__(self, settings: Settings, *, replaces_living: bool) -> None:
        self.problems: list[str] = []
        self.control = ControlSocket(settings, 8000, self._emit, replaces_living=replaces_living)
        self.listening = self.control.open()

    def _emit(self, event: object, **fields: Any) -> None:
        assert event is CONTROL_SOCKET_PROBLEM
        self.problems.append(f"{fields['path']}: {fields['problem']}")

    @property
    def path(self) -> Path:
        assert self.listening is not None
        return Path(self.listening.getsockname())

    def close(self) -> None:
        if self.listening is not None:
            self.listening.close()


@pytest.fixture
def opened() -> Iterator[Any]:
    made: list[Opened] = []

    def open_one(settings: Settings | None = None, *, replaces_living: bool = False) -> Opened:
        made.append(Opened(settings or Settings(), replaces_living=replaces_living))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_it_lies_in_a_folder_of_its_own(home: Path, opened: Any) -> None:
    one = opened()
    assert one.path == home / f"tmp/vllm-gateway-{ME}/control-8000.sock"
    assert (mode(one.path), mode(one.path.parent)) == (0o600, 0o700)
    assert not one.problems
    before = home / f"tmp/vllm-gateway-{ME}-8000.sock"
    assert one.control.paths[-1] == before
    assert before.resolve() == one.path, "where the release before looks for it"
    one.control.remove()
    assert not one.path.exists()
    assert not before.is_symlink()


def test_the_folder_of_the_user_is_better(home: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    assert opened().path == home / "vllm-gateway/control-8000.sock"


@pytest.mark.parametrize("squatter", ["a file", "a folder for all", "a link"])
def test_where_somebody_else_was_first_another_place_is_found(squatter: str, home: Path, opened: Any) -> None:
    place = home / f"tmp/vllm-gateway-{ME}"
    if squatter == "a file":
        place.touch()
    elif squatter == "a link":
        (home / "elsewhere").mkdir()
        place.symlink_to(home / "elsewhere")
    else:
        place.mkdir()
        place.chmod(0o777)
    one = opened()
    assert one.path == home / "home/.local/state/vllm-gateway/control-8000.sock"
    assert len(one.problems) == 1
    assert str(place) in one.problems[0]
    assert one.path in one.control.paths, "where a new gateway looks for it"
    one.control.open()
    assert len(one.problems) == 2, "each problem is told once: the one more is that it is open already"


@pytest.mark.skipif(ME != 0, reason="only root can act as somebody else")
def test_somebody_elses_folder_and_socket(home: Path, opened: Any) -> None:
    place = home / f"tmp/vllm-gateway-{ME}"
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    assert f"{place} belongs to another user" in opened().problems[0]
    given = home / "given.sock"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(given))
        theirs.listen()
        os.chown(given, 12345, 12345)
        one = opened(Settings(server=Server(control_socket=str(given))))
        assert (one.listening, one.problems) == (None, [f"{given}: {given} belongs to another user"])
        assert given.is_socket(), "it is not taken away"


def test_what_is_no_socket_is_not_removed(home: Path, opened: Any) -> None:
    given = home / "precious"
    given.write_text("data")
    one = opened(Settings(server=Server(control_socket=str(given))))
    assert one.listening is None
    assert "no socket" in one.problems[0]
    assert given.read_text() == "data"


def test_one_that_lives_is_replaced_by_its_successor_alone(opened: Any) -> None:
    first = opened()
    second = opened()
    assert second.listening is None
    assert "somebody listens there already" in second.problems[0]
    assert opened(replaces_living=True).path == first.path
    first.close()


def test_a_dead_one_is_replaced(opened: Any) -> None:
    first = opened()
    path = first.path
    first.close()
    assert opened().path == path


@pytest.mark.parametrize("wanted", [0o600, 0o660, 0o666])
def test_a_socket_has_its_mode_whatever_the_umask(wanted: int, tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        with bind_unix(tmp_path / "s", wanted):
            assert mode(tmp_path / "s") == wanted
    finally:
        os.umask(previous)
