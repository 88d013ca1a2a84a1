# SPDX-License-Identifier: Apache-2.0
"""A change of files counts once they are at rest, however it was made, and once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_gateway.files.watch import Watch


class Watched:
    """`looks` does not wait between two looks."""

    def __init__(self, *paths: Path) -> None:
        self._watch = Watch(paths)

    async def looks(self, times: int = 1) -> bool:
        return any([await self._watch.look() for _ in range(times)])


async def test_a_file_that_is_written_little_by_little_counts_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("models: {}\n")
    watched = Watched(file)
    assert not await watched.looks(2)
    file.write_text("")
    assert not await watched.looks(3), "an editor that empties it first"
    for text in ("m", "mo", "mod"):
        file.write_text(text)
        assert not await watched.looks()
    assert await watched.looks()
    assert not await watched.looks(2), "once"
    file.unlink()
    assert not await watched.looks(3)
    file.write_text("models: {a: {}}\n")
    assert await watched.looks(2)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_text("")], ids=["gone", "empty"])
async def test_a_file_that_stays_away_is_told_of_once(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("a key")
    watched = Watched(file)
    spoil(file)
    assert await watched.looks(6)
    assert not await watched.looks(6)


async def test_who_may_read_a_file_is_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("a key")
    watched = Watched(file)
    file.chmod(0o640)
    assert await watched.looks(2)


async def test_files_that_change_together_are_one_change(tmp_path: Path) -> None:
    files = [tmp_path / "certificate.pem", tmp_path / "key.pem"]
    for file in files:
        file.write_text("old")
    watched = Watched(*files)
    files[0].write_text("a new one")
    assert not await watched.looks()
    files[1].write_text("a new one")
    assert not await watched.looks(), "they have not come to rest"
    assert await watched.looks()
    assert not await watched.looks(3)


async def test_a_file_that_is_replaced_is_noticed_behind_links_too(tmp_path: Path) -> None:
    """As Kubernetes does it: the file is a link into a folder that is itself a link, and that one is replaced."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gateway.yaml").write_text("models: {}\n")
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "gateway.yaml").symlink_to("..data/gateway.yaml")
    watched = Watched(tmp_path / "gateway.yaml")
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "..data")
    assert await watched.looks(2)
