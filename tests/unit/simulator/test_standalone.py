# SPDX-License-Identifier: Apache-2.0
"""The simulated engine runs where there is only Python: no site-packages, nothing else of vllm_gateway."""

import subprocess
import sys
from pathlib import Path

import vllm_gateway

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import vllm_gateway.simulator.process
ours = [name for name in sys.modules if name.startswith("vllm_gateway.")]
strangers = [name for name in ours if not name.startswith("vllm_gateway.simulator")]
sys.exit(f"imported {strangers}" if strangers else 0)
"""


def test_it_needs_the_standard_library_alone() -> None:
    source = Path(vllm_gateway.__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(source)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
