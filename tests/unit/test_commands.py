# SPDX-License-Identifier: Apache-2.0
"""How commands end when what they print is not read to its end."""

import os
import subprocess
import sys

import pytest

from tests.waiting import LIMIT_S
from vllm_gateway.cli.main import EXIT_NOBODY_READS


@pytest.mark.parametrize(("command", "code"), [("check", EXIT_NOBODY_READS), ("--help", 0)])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(command: str, code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "vllm_gateway.cli", command],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=LIMIT_S,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, b"")
