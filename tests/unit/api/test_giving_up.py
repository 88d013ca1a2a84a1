# SPDX-License-Identifier: Apache-2.0
"""Engines that go away are told from engines that answer with an error."""

import pytest

from vllm_gateway.api.giving_up import is_clients_fault, is_giving_up
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


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (500, b'{"error": {"message": "Grammar error", "type": "BadRequestError", "code": 400}}', True),
        (500, b'{"error":{"message":"no","code":"422"}}', True),
        (500, b'{"detail": "The decoder prompt (length 9) is longer than the maximum model length of 8."}', True),
        (500, b"This model's maximum context length is 8 tokens", True),
        (500, b'{"error": {"message": "list index out of range", "code": 500}}', False),
        (500, b'{"error": {"message": "4xx", "code": 40}}', False),
        (503, b'{"error": {"code": 400}}', False),
    ],
)
def test_a_500_may_name_the_clients_fault(status: int, body: bytes, expected: bool) -> None:
    assert is_clients_fault(status, body) is expected
