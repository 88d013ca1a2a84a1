# SPDX-License-Identifier: Apache-2.0
"""A caller is known by its key without the key being shown."""

import pytest

from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.gate import Gate
from vllm_gateway.api.keys import ApiKeys, offered_keys
from vllm_gateway.configuration.settings import Server

KEYS = ApiKeys(("sk-one", "sk two"))


def caller(*authorization: bytes, x_api_key: tuple[bytes, ...] = ()) -> str:
    return KEYS.caller(offered_keys(authorization, x_api_key))


def test_without_keys_everybody_is_known_by_address() -> None:
    assert Gate(Server()).caller(offered_keys([b"Bearer whatever"], []), "127.0.0.1") == "127.0.0.1"


def test_each_key_has_its_own_name_which_is_not_the_key() -> None:
    one, two = caller(b"Bearer sk-one"), caller(b"Bearer sk two")
    assert one != two
    assert "sk-" not in one
    gate = Gate(Server(api_keys=("sk-one",)))
    assert gate.caller(offered_keys([b"Bearer sk-one"], []), "127.0.0.1") == one, "wherever it comes from"


@pytest.mark.parametrize(
    "given",
    [b"Bearer sk-one", b"bearer sk-one", b"BEARER sk-one", b"Bearer    sk-one", b" Bearer sk-one "],
)
def test_the_scheme_may_be_written_in_any_way(given: bytes) -> None:
    assert caller(given)


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"sk-one",
        b"Bearer",
        b"Bearer ",
        b"Bearer sk-on",
        b"Bearer sk-one1",
        b"Bearersk-one",
        b"Basic sk-one",
        b"\xff",
    ],
)
def test_anything_else_is_refused_but_for_a_good_key_beside_it(given: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        caller(given)
    assert caught.value.code == "invalid_api_key"
    assert caller(given, x_api_key=(b"sk-one",)) == caller(b"Bearer sk-one")
    assert caller(given, b"Bearer sk-one") == caller(b"Bearer sk-one")
    with pytest.raises(ApiError):
        caller(given, x_api_key=(b"", b"sk-on"))
