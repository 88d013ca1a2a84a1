# SPDX-License-Identifier: Apache-2.0
"""A caller is known by its key without the key being shown."""

import pytest

from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.keys import ApiKeys


def test_without_keys_everybody_is_known_by_address() -> None:
    assert ApiKeys(()).caller(b"Bearer whatever", "127.0.0.1") == "127.0.0.1"


def test_each_key_has_its_own_name_which_is_not_the_key() -> None:
    keys = ApiKeys(("sk-one", "sk-two"))
    one, two = keys.caller(b"Bearer sk-one", "127.0.0.1"), keys.caller(b"Bearer sk-two", "127.0.0.1")
    assert one != two
    assert "sk-" not in one
    assert one == keys.caller(b"Bearer sk-one", "127.0.0.2")


@pytest.mark.parametrize("given", [b"", b"sk-one", b"Bearer sk-on", b"bearer sk-one", b"Bearer sk-one ", b"\xff"])
def test_anything_else_is_refused(given: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        ApiKeys(("sk-one",)).caller(given, "127.0.0.1")
    assert caught.value.code == "invalid_api_key"
