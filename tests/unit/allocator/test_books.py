# SPDX-License-Identifier: Apache-2.0
"""The ledger, the footprints on disk and the estimates."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vllm_gateway.allocator.estimate import estimate_mib
from vllm_gateway.allocator.footprints import FootprintStore, footprint_key
from vllm_gateway.allocator.ledger import fits_beside, held_mib
from vllm_gateway.allocator.types import Gpu, Resident

GPUS = [Gpu("g0", 0, "card", 24576, foreign_mib=500), Gpu("g1", 1, "card", 24576, problem="fell off the bus")]
LEAVING = [Resident("0", "m", ("g0", "g1"), 10000, leaving=True), Resident("1", "n", ("g0",), 4000)]
CARD = 24576


def test_what_leaves_is_held_until_it_is_gone() -> None:
    assert (held_mib("g0", LEAVING), held_mib("g1", LEAVING), held_mib("g2", LEAVING)) == (14000, 10000, 0)
    assert fits_beside(LEAVING, ["g0"], 10076, GPUS, 0)
    assert not fits_beside(LEAVING, ["g0"], 10077, GPUS, 0)
    assert not fits_beside(LEAVING, ["g0"], 10076, GPUS, 1)


def test_an_unknown_or_broken_gpu_has_no_room() -> None:
    assert not fits_beside([], ["g1"], 1, GPUS, 0)
    assert not fits_beside([], ["g0", "g7"], 1, GPUS, 0)


def test_a_key_is_readable_and_tells_arguments_apart() -> None:
    key = footprint_key("google/gemma-3-4b-it", "vllm:1", ["--a", "b"], "NVIDIA L4")
    assert key.startswith("google/gemma-3-4b-it | vllm:1 | args-")
    assert key.endswith(" | NVIDIA L4")
    assert key != footprint_key("google/gemma-3-4b-it", "vllm:1", ["--a b"], "NVIDIA L4")


def test_footprints_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "footprints.json"
    store = FootprintStore(path)
    assert store.load() is None
    store.put("k", 9000)
    store.save()
    again = FootprintStore(path)
    assert again.load() is None
    assert (again.get("k"), again.get("other"), dict(again.all())) == (9000, None, {"k": 9000})
    assert [file.name for file in path.parent.iterdir()] == ["footprints.json"]


def test_threads_that_save_at_once_do_not_spoil_it(tmp_path: Path) -> None:
    store = FootprintStore(tmp_path / "footprints.json")

    def measured(number: int) -> None:
        store.put(f"k{number}", 1 + number)
        store.save()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(measured, range(32)))
    again = FootprintStore(tmp_path / "footprints.json")
    assert again.load() is None
    assert len(again.all()) == 32


def test_half_a_file_of_one_that_was_killed_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "footprints.json").write_text('{"version": 1, "footprints_mib": {"k": 1}}')
    (tmp_path / "footprints.json.tmp").write_text('{"version": 1, "foot')
    store = FootprintStore(tmp_path / "footprints.json")
    assert store.load() is None
    assert [file.name for file in tmp_path.iterdir()] == ["footprints.json"]
    assert store.get("k") == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 9}', b'{"version": 1, "footprints_mib": 3}', b"[" * 100000],
)
def test_a_damaged_file_is_set_aside_each_time(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "footprints.json"
    for number in (1, 2):
        path.write_bytes(content)
        store = FootprintStore(path)
        warning = store.load()
        assert warning is not None
        assert f"footprints.json.damaged-{number}" in warning
        assert (tmp_path / f"footprints.json.damaged-{number}").read_bytes() == content
        assert not path.exists()
        assert not store.all()


def test_entries_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "footprints.json"
    entries = {"good": 5, "text": "5", "true": True, "negative": -1, "none": None, "float": 1.5}
    path.write_text(json.dumps({"version": 1, "footprints_mib": entries}))
    store = FootprintStore(path)
    warning = store.load()
    assert warning is not None
    assert warning.startswith("5 footprints")
    assert dict(store.all()) == {"good": 5}


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "footprints.json"
    store = FootprintStore(path)
    store.put("k", 1)
    store.save()
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store.put("k", 2)
    with pytest.raises(OSError, match="No space"):
        store.save()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("google/gemma-3-4b-it", 12228),
        ("Qwen/Qwen2.5-0.5B-Instruct", 4217),
        ("google/gemma-3-270m", 3690),
        ("Qwen/Qwen3-14B-FP8", 19094),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", 7879),
        ("some/model-without-a-size", 22609),
        ("Qwen/Qwen2.5-8B", 21383),
        ("Qwen/Qwen2.5-9.5B", 22609),  # the weights fit, if barely: the whole card
    ],
)
def test_a_name_tells_the_size(repository: str, expected: int) -> None:
    assert estimate_mib(repository, None, 1, CARD) == expected


def test_what_cannot_fit_is_not_made_to_fit() -> None:
    assert estimate_mib("mistralai/Mixtral-8x7B-v0.1", None, 1, CARD) > CARD
    assert estimate_mib("mistralai/Mixtral-8x7B-v0.1", None, 8, CARD) == 19094


@pytest.mark.parametrize("hub", ["", "hub"])
def test_files_in_the_cache_tell_better(tmp_path: Path, hub: str) -> None:
    model = tmp_path / hub / "models--org--model-70b"
    for snapshot, mib in (("old", 500), ("new", 1000)):
        (model / "snapshots" / snapshot).mkdir(parents=True)
        for name in ("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors", "pytorch_model.bin"):
            with (model / "snapshots" / snapshot / name).open("wb") as file:
                file.truncate(mib << 20)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("new\n")
    assert estimate_mib("org/model-70b", tmp_path, 1, CARD) == 2400 + 3072
    assert estimate_mib("org/model-70b", tmp_path, 2, CARD) == 1200 + 3072
    assert estimate_mib(str(model / "snapshots" / "old"), None, 1, CARD) == 1200 + 3072


def test_the_index_counts_where_the_download_was_cut_short(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"x")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1000 << 20}}))
    assert estimate_mib(str(tmp_path), None, 1, CARD) == 1200 + 3072
    index.write_text("[1]")
    assert estimate_mib(str(tmp_path), None, 1, CARD) == 3073
