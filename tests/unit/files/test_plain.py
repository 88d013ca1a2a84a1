# SPDX-License-Identifier: Apache-2.0
"""Whatever lies where an operator's file should be, its reader comes back at once and says what it is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_gateway.allocator.estimate import parameters_mib
from vllm_gateway.allocator.footprints import FootprintStore
from vllm_gateway.configuration.loading import ConfigError, load_settings
from vllm_gateway.files.plain import read_plain
from vllm_gateway.fleet.engine_keys import EngineKeys
from vllm_gateway.replay.trace import read_trace
from vllm_gateway.scheduling import StrategyError, make_strategy
from vllm_gateway.telemetry.trace import TraceRecorder

MODELS = {"m": {"endpoints": ["http://127.0.0.1:1"]}}


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


STRANGE = {"a pipe": os.mkfifo, "a device": _device, "a folder": Path.mkdir}
Lay = Callable[[Path], object]


@pytest.fixture(params=[*STRANGE.values()], ids=[*STRANGE])
def lay(request: pytest.FixtureRequest) -> Lay:
    return request.param  # type: ignore[no-any-return]


def refused(settings: dict[str, object], folder: Path) -> str:
    file = folder / "gateway.yaml"
    file.write_text(json.dumps({"models": MODELS, **settings}))
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {})
    return str(caught.value)


def test_a_plain_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_plain(file, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_plain(file, 4)


def test_the_config_file(lay: Lay, tmp_path: Path) -> None:
    lay(tmp_path / "x")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "x", {})


@pytest.mark.parametrize("setting", ["certificate", "key"])
def test_files_of_tls(lay: Lay, setting: str, tmp_path: Path) -> None:
    lay(tmp_path / setting)
    for name in {"certificate", "key"} - {setting}:
        (tmp_path / name).write_text("x")
    tls = {name: str(tmp_path / name) for name in ("certificate", "key")}
    assert f"server.tls.{setting}: {tmp_path / setting} cannot be read" in refused({"server": {"tls": tls}}, tmp_path)


def test_the_file_of_a_key(lay: Lay, tmp_path: Path) -> None:
    lay(tmp_path / "x")
    keys = [{"name": "a", "key_file": str(tmp_path / "x")}]
    assert "cannot be read" in refused({"server": {"api_keys": keys}}, tmp_path)


def test_a_strategy(lay: Lay, tmp_path: Path) -> None:
    lay(tmp_path / "x.py")
    with pytest.raises(StrategyError, match=r"x\.py cannot be loaded"):
        make_strategy("x", tmp_path)


def test_footprints(lay: Lay, tmp_path: Path) -> None:
    lay(tmp_path / "x.json")
    assert "cannot be read" in str(FootprintStore(tmp_path / "x.json").load())


def test_a_trace(lay: Lay, tmp_path: Path) -> None:
    lay(tmp_path / "x.jsonl")
    with pytest.raises(OSError, match=r"plain file|directory"):
        read_trace(tmp_path / "x.jsonl")


def test_an_index_of_weights(lay: Lay, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    lay(tmp_path / "model.safetensors.index.json")
    assert parameters_mib(str(tmp_path), None) == 1


def test_the_secret_of_engines_keys(lay: Lay, tmp_path: Path) -> None:
    lay(tmp_path / "engines.key")
    assert EngineKeys(tmp_path).of("an engine")


def test_a_pipe_that_nobody_reads_records_no_trace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(OSError, match="No such device"):
        TraceRecorder(tmp_path / "x.jsonl", 0.0, print)
