# SPDX-License-Identifier: Apache-2.0
"""What is said of a request that is not understood stays one line."""

import pytest
from aiohttp.test_utils import make_mocked_request

from vllm_gateway.api.answers import only
from vllm_gateway.api.errors import ApiError


def test_a_path_with_control_characters_is_named_on_one_line() -> None:
    with pytest.raises(ApiError) as caught:
        only(make_mocked_request("POST", "/gateway/instances/a%0ab%1b/logs"), "GET")
    assert caught.value.message == "/gateway/instances/a\\u000ab\\u001b/logs takes GET, not POST."
