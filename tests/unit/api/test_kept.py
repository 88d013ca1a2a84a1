# SPDX-License-Identifier: Apache-2.0
"""Ids of responses are learned from the first bytes of replies, however they come, and what is known is bounded."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.kept import MOST, KeptResponses, response_in
from vllm_gateway.routing import Address
from vllm_gateway.scheduling import InstanceView

HERE = InstanceView("i1", "m-1", "m", Address("127.0.0.1", 1), 10)
THERE = InstanceView("i2", "m-2", "m", Address("127.0.0.1", 2), 10)
PLAIN = b'{"id":"resp_1","created_at":1,"model":"m","object":"response","output":[{"id":"msg_1"}]}'
STREAM = b'event: response.created\ndata: {"response":{"id":"resp_1","created_at":1},"sequence_number":0}\n\n'


class FewQueues:
    """Two instances of one model."""

    def __init__(self) -> None:
        self.views = [HERE, THERE]

    def of(self, model: str) -> "FewQueues":
        return self

    def lists(self, instance_id: str) -> bool:
        return instance_id == "suspect"


def kept() -> KeptResponses:
    return KeptResponses(cast(Any, FewQueues()), cast(Any, None), cast(Any, None), lambda: ["m"])


def attempts(view: InstanceView = HERE) -> Any:
    return SimpleNamespace(instance=view, info=SimpleNamespace(client="c"), rename=None)


@pytest.mark.parametrize(
    "reply", [PLAIN, STREAM, b"57\r\n" + PLAIN, b'{ "id" : "resp_1" }', b": starting m\n\n" + STREAM]
)
@pytest.mark.parametrize("size", [1, 10, 10_000])
def test_an_id_is_learned_from_a_reply(reply: bytes, size: int) -> None:
    here = kept()
    learner = here.learner(attempts())
    for at in range(0, len(reply), size):
        learner.watch(reply[at : at + size])
    assert here.place_of("resp_1", "c") is HERE


def test_the_instance_that_went_on_has_it() -> None:
    here, tries = kept(), attempts()
    learner = here.learner(tries)
    learner.watch(STREAM)
    tries.instance = THERE
    learner.settle()
    assert here.place_of("resp_1", "c") is THERE


@pytest.mark.parametrize("reply", [b"x" * 100_000 + PLAIN, b'{"error":{"message":"no"}}', b'{"id":"a b"}', b""])
def test_nothing_is_learned_from_others(reply: bytes) -> None:
    here = kept()
    learner = here.learner(attempts())
    learner.watch(reply[:50_000])
    learner.watch(reply[50_000:])
    learner.settle()
    with pytest.raises(ApiError, match="No response"):
        here.place_of("resp_1", "c")


def test_what_is_known_is_bounded() -> None:
    here = kept()
    for number in range(MOST + 1):
        here.remember(f"resp_{number}", HERE, "c")
    assert here.place_of(f"resp_{MOST}", "c") is HERE
    with pytest.raises(ApiError, match="knows where the last"):
        here.place_of("resp_0", "c")


def test_a_suspect_is_waited_for_and_a_key_finds_its_own() -> None:
    here = kept()
    here.remember("resp_1", InstanceView("suspect", "m-3", "m", HERE.address, 1), "c")
    with pytest.raises(ApiError) as checked:
        here.place_of("resp_1", "c")
    assert (checked.value.code, checked.value.retry_after_s) == ("instance_failed", 1.0)
    here.remember("resp_2", HERE, "c")
    assert here.place_of("resp_2", "another address") is HERE
    here.by_caller = True
    with pytest.raises(ApiError) as foreign:
        here.place_of("resp_2", "another key")
    assert foreign.value.code == "response_not_found"


def test_paths_about_a_response() -> None:
    assert response_in("/v1/responses/resp_1-2.3") == "resp_1-2.3"
    assert response_in("/v1/responses/resp_1/cancel") == "resp_1"
    for other in ("/v1/responses", "/v1/responses/", "/v1/responses/render", "/v1/responses/a/b", "/v1/models/m"):
        assert response_in(other) is None
