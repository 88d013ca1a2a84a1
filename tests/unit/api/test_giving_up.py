# SPDX-License-Identifier: Apache-2.0
"""Engines that go away are told from engines that answer with an error."""

import pytest

from vllm_gateway.api.giving_up import is_giving_up
from vllm_gateway.simulator.api_errors import SHUTTING_DOWN_MESSAGE
from vllm_gateway.simulator.engine import DEAD_MESSAGE


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (500, SHUTTING_DOWN_MESSAGE, True),
        (500, DEAD_MESSAGE, True),
        (500, "list index out of range", False),
        (502, "", True),
        (503, "", True),
        (501, SHUTTING_DOWN_MESSAGE, False),
    ],
)
def test_by_status_and_words(status: int, message: str, expected: bool) -> None:
    assert is_giving_up(status, b'{"error": {"message": "%b"}}' % message.encode()) is expected
