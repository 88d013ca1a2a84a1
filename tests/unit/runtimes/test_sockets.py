# SPDX-License-Identifier: Apache-2.0
"""The folders of engines' sockets: each one's own, and gone when nobody listens there any more."""

import os
import socket
import stat
from pathlib import Path

from vllm_gateway.fleet.runtimes.sockets import EngineSockets, fits


def test_each_engine_has_a_folder_and_a_containers_is_open_to_whoever_it_runs_as(tmp_path: Path) -> None:
    sockets = EngineSockets(tmp_path)
    ours, contained = sockets.make(), sockets.make(in_container=True)
    assert [stat.S_IMODE(one.parent.stat().st_mode) for one in (ours, contained)] == [0o700, 0o777]
    sockets.remove(str(ours))
    assert list(tmp_path.iterdir()) == [contained.parent]


def test_what_an_earlier_gateway_made_elsewhere_goes_with_its_socket(tmp_path: Path) -> None:
    for name in ("here", "there", "full"):
        (tmp_path / name).mkdir()
    path, full = (EngineSockets(tmp_path / name).make() for name in ("there", "full"))
    for one in (path, full):
        one.touch()
    (full.parent / "other").touch()
    for one in (path, full, tmp_path / "none" / "engine.sock"):
        EngineSockets(tmp_path / "here").remove(one)
    assert not path.parent.exists()
    assert [one.name for one in full.parent.iterdir()] == ["other"]


def test_a_path_that_fits_can_be_bound(tmp_path: Path) -> None:
    letters = 107 - len(os.fsencode(tmp_path)) - len("/") - len("/12345678/engine.sock")
    folder = tmp_path / ("x" * letters)
    folder.mkdir()
    assert fits(folder)
    assert not fits(tmp_path / ("x" * (letters + 1)))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(EngineSockets(folder).make()))


def test_what_is_left_of_long_dead_engines_goes(tmp_path: Path) -> None:
    sockets = EngineSockets(tmp_path)
    dead, alive, young, silent = (sockets.make() for _ in range(4))
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as bound:
        listening.bind(str(alive))
        listening.listen()
        bound.bind(str(dead))
        for one in (dead, alive, silent):
            os.utime(one.parent, (0, 0))
        sockets.sweep()
    assert {one for one in (dead, alive, young, silent) if one.parent.exists()} == {alive, young}
