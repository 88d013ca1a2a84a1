# SPDX-License-Identifier: Apache-2.0
"""What killed processes have left goes; what belongs to somebody who lives, or may live, stays."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vllm_gateway.service.leftovers import own_folder, remove_dead_sockets

HOLDS_ONE = """
import sys
from vllm_gateway.service.leftovers import own_folder
with own_folder("mine-") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_the_folder_of_a_process_that_was_killed_goes_and_that_of_one_that_lives_stays(tmp_path: Path) -> None:
    (tmp_path / "mine-whose").mkdir()
    (tmp_path / "theirs-dead").mkdir()
    (tmp_path / "theirs-dead" / "owner").touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_ONE],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        with own_folder("mine-") as own:
            assert {own, folder} < set(tmp_path.iterdir())
        assert not own.exists()
        other.kill()
        other.wait()
    assert folder.exists()
    with own_folder("mine-"):
        assert not folder.exists()
    assert {one.name for one in tmp_path.iterdir()} == {"mine-whose", "theirs-dead"}, "nobody knows whose they are"


def test_sockets_that_nobody_listens_on_go(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as living, socket.socket(socket.AF_UNIX) as dead:
        for one, name in ((living, "g-living.sock"), (dead, "g-dead.sock")):
            one.bind(str(tmp_path / name))
            one.listen(1)
        living.setblocking(False)
        dead.close()
        for name in ("other-dead.sock", "g-young.sock"):
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(tmp_path / name))
        (tmp_path / "g-file.sock").touch()
        (tmp_path / "g-nowhere.sock").symlink_to(tmp_path / "gone")
        (tmp_path / "g-somewhere.sock").symlink_to(tmp_path / "g-living.sock")
        long_ago = time.time() - 3600
        for name in ("living", "dead", "file", "nowhere", "somewhere"):
            os.utime(tmp_path / f"g-{name}.sock", (long_ago, long_ago), follow_symlinks=False)
        os.utime(tmp_path / "other-dead.sock", (long_ago, long_ago))
        for _ in range(4):  # more than wait to be accepted
            remove_dead_sockets(tmp_path, "g-*.sock")
        left = {"g-living.sock", "g-young.sock", "g-file.sock", "g-somewhere.sock", "other-dead.sock"}
        assert {one.name for one in tmp_path.iterdir()} == left
