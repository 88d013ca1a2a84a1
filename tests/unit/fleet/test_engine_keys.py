# SPDX-License-Identifier: Apache-2.0
"""The keys of engines: random, kept by one secret that is the gateway's alone."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vllm_gateway.fleet.engine_keys import EngineKeys


def test_each_engine_has_its_own_and_a_later_gateway_knows_it(tmp_path: Path) -> None:
    keys = EngineKeys(tmp_path)
    assert keys.of("a") != keys.of("b")
    assert EngineKeys(tmp_path).of("a") == keys.of("a")
    (kept,) = tmp_path.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_two_gateways_have_no_two_secrets(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: EngineKeys(tmp_path).of("a"), range(8)))) == 1


def test_without_a_place_to_keep_it_there_is_a_secret_all_the_same(tmp_path: Path) -> None:
    keys = EngineKeys(tmp_path / "nowhere")
    assert keys.of("a") == keys.of("a") != EngineKeys(tmp_path / "nowhere").of("a")
