# SPDX-License-Identifier: Apache-2.0
"""Where the gateway keeps what it keeps, and that nobody else can write there."""

import stat
import tempfile
from pathlib import Path

import pytest

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.configuration.state_dir import engines_folder, open_state_dir, private_folder, wanted_folder

PLACES = {"STATE_DIRECTORY": "/var/lib/vllm-gateway:/var/lib/other", "XDG_STATE_HOME": "/x"}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("configured", "environ", "wanted"),
    [
        ("/own", PLACES, "/own"),
        (None, PLACES, "/var/lib/vllm-gateway"),
        (None, {"XDG_STATE_HOME": "/x"}, "/x/vllm-gateway"),
        (None, {}, str(Path("~/.local/state/vllm-gateway").expanduser())),
    ],
)
def test_it_is_where_it_is_configured_else_systemds_else_the_users(
    configured: str | None, environ: dict[str, str], wanted: str
) -> None:
    assert wanted_folder(Settings(state_dir=configured), environ) == Path(wanted)


def test_it_is_made_for_this_user_alone(tmp_path: Path) -> None:
    state = open_state_dir(Settings(state_dir=str(tmp_path / "a" / "b")), {})
    assert (state.folder, state.problem) == (tmp_path / "a" / "b", None)
    assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
    assert open_state_dir(Settings(state_dir=str(tmp_path / "a" / "b")), {}) == state


def test_where_it_cannot_be_another_takes_its_place_and_the_reason_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for wanted, reason in ((file / "x", "File exists"), (file, "is not a folder"), (shared, "chmod go-w")):
        state = open_state_dir(Settings(state_dir=str(wanted)), {})
        assert state.folder.parent == tmp_path
        assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
        assert reason in str(state.problem)


def test_sockets_lie_where_their_paths_are_short_enough(tmp_path: Path) -> None:
    state = private_folder(tmp_path / "state")
    assert engines_folder(state, lambda folder: True) == state / "engines"
    short = engines_folder(state, lambda folder: not folder.is_relative_to(state))
    assert short.parent.parent == tmp_path
    assert {stat.S_IMODE(one.stat().st_mode) for one in (state, short, short.parent)} == {0o700}
    with pytest.raises(OSError, match="Name a shorter one in `state_dir`"):
        engines_folder(state, lambda folder: False)


def test_a_link_that_somebody_left_in_the_temporary_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "taken").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        private_folder(tmp_path / "taken")
