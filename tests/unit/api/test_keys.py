# SPDX-License-Identifier: Apache-2.0
"""A caller is known by its key without the key being shown, and may do what its role is for."""

import hashlib
from pathlib import Path

import pytest

from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.gate import Gate
from vllm_gateway.api.keys import ApiKeys, Task, offered_keys
from vllm_gateway.configuration.api_keys import NamedKey, Role
from vllm_gateway.configuration.settings import Server

KEYS = ApiKeys(("sk-one", "sk two"))


def caller(*authorization: bytes, x_api_key: tuple[bytes, ...] = ()) -> str:
    return KEYS.caller(offered_keys(authorization, x_api_key), "infer")


def test_without_keys_everybody_is_known_by_address() -> None:
    assert Gate(Server()).caller(offered_keys([b"Bearer whatever"], []), "127.0.0.1", "steer") == "127.0.0.1"


def test_each_key_has_its_own_name_which_is_not_the_key() -> None:
    one, two = caller(b"Bearer sk-one"), caller(b"Bearer sk two")
    assert one != two
    assert "sk-" not in one
    gate = Gate(Server(api_keys=("sk-one",)))
    assert gate.caller(offered_keys([b"Bearer sk-one"], []), "127.0.0.1", "steer") == one, "wherever it comes from"


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


ROLES: dict[Role, set[Task]] = {
    "inference": {"infer"},
    "metrics": {"scrape"},
    "viewer": {"infer", "scrape", "look"},
    "admin": {"infer", "scrape", "look", "steer"},
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_for_some_tasks_and_for_no_others(role: Role) -> None:
    keys = ApiKeys([NamedKey(name="somebody", role=role, key="k"), "plain"])
    offered, may_all = offered_keys([b"Bearer k"], []), offered_keys([b"Bearer plain"], [])
    tasks: list[Task] = ["infer", "scrape", "look", "steer", "nothing"]
    for task in tasks:
        assert keys.caller(may_all, task)
        assert keys.caller([*offered, *may_all], task), "one that may is enough"
        if task in ROLES[role] or task == "nothing":
            assert keys.caller(offered, task) == "somebody"
            continue
        with pytest.raises(ApiError, match=f"the role of 'somebody' is {role}") as caught:
            keys.caller(offered, task)
        assert caught.value.code == "role_not_allowed"
    with pytest.raises(ApiError) as caught:
        keys.caller(offered_keys([b"Bearer x"], []), "nothing")
    assert caught.value.code == "invalid_api_key"


def test_where_a_key_stands_makes_no_difference(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-one\n")
    forms = (
        NamedKey(name="a", key="sk-one"),
        NamedKey(name="a", key_sha256=hashlib.sha256(b"sk-one").hexdigest().upper()),
        NamedKey(name="a", key_file=str(file)),
    )
    for key in forms:
        assert ApiKeys([key]).caller(offered_keys([b"Bearer sk-one"], []), "infer") == "a"
        assert "sk-one" not in repr(key)
        with pytest.raises(ApiError):
            ApiKeys([key]).caller(offered_keys([b"Bearer sk-two"], []), "infer")
    assert [key.secret for key in forms] == ["sk-one", None, "sk-one"]
    changed = NamedKey(name="a", key_file=str(file))
    file.write_text("sk-two\n")
    assert NamedKey(name="a", key_file=str(file)) != changed, "a reload notices it"
