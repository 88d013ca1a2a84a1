# SPDX-License-Identifier: Apache-2.0
"""The wheel holds what a stranger needs who has no checkout: the package with its strategies, and the command."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SAYS_WHERE = "import vllm_gateway.scheduling as s; print(s.load_strategy('round_robin').choose.__code__.co_filename)"


def test_the_wheel_brings_its_strategies(tmp_path: Path) -> None:
    build = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run([sys.executable, *build], check=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert "vllm_gateway/strategies/round_robin.py" in names
    assert "vllm_gateway/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "strategies/"))]
    done = subprocess.run(
        [sys.executable, "-c", SAYS_WHERE],
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        check=True,
    )
    assert str(tmp_path) in done.stdout.decode()
