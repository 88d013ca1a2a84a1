# SPDX-License-Identifier: Apache-2.0
"""Large events are understood as small ones are, as far as a stream needs it."""

import orjson
import pytest

from tests.unit.streams.test_continuation import CHAT, COMPLETION, request, tracker_of
from vllm_gateway.streams import Resume, Tracker
from vllm_gateway.streams import tracker as tracker_module
from vllm_gateway.streams.continued import Continued
from vllm_gateway.streams.large import LARGE_EVENT_BYTES, glance, without_prompt_ids
from vllm_gateway.streams.sse import DONE, event_of

PROMPT = list(range(40_000))
PADDING = "x" * LARGE_EVENT_BYTES


def event(**fields: object) -> bytes:
    return event_of(orjson.dumps({"id": "1", "object": "o", "created": 1, "model": "m", **fields}))


def choice(**fields: object) -> list[dict[str, object]]:
    return [{"index": 0, "delta": {}, "finish_reason": None, **fields}]


def following(path: str = CHAT, resume: Resume = Resume.EXACT, **options: object) -> Tracker:
    return tracker_of(path, request(path, **options), resume)


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize("shown", [False, True])
def test_a_long_prompts_ids_are_kept_and_hidden(path: str, shown: bool) -> None:
    tracker = following(path, return_token_ids=shown)
    if path == CHAT:
        first = event(choices=choice(delta={"role": "assistant"}), prompt_token_ids=PROMPT)
    else:
        first = event(choices=[{"index": 0, "text": "", "finish_reason": None, "prompt_token_ids": PROMPT}])
    assert len(first) > LARGE_EVENT_BYTES
    expected = first if shown else first.replace(orjson.dumps(PROMPT), b"null")
    assert tracker.feed(first) == expected
    assert tracker.prompt_tokens == len(PROMPT)
    assert tracker.obstacle is None and tracker.begun


def test_ids_that_are_none_stay() -> None:
    for text in (b'{"x":"\\"prompt_token_ids\\":[1,2]"}', b'{"prompt_token_ids":["1"]}', b'{"prompt_token_ids":[1,'):
        assert without_prompt_ids(text) == (text, None)


def test_what_else_is_large_is_passed_on_and_its_end_is_seen() -> None:
    tracker = following()
    first, last = (
        event(choices=choice(delta={"content": PADDING})),
        event(choices=choice(delta={"content": PADDING + '"finish_reason":"stop"'}, finish_reason="stop")),
    )
    assert tracker.feed(first) == first
    assert not tracker.is_finished and tracker.obstacle is not None
    assert tracker.feed(last) == last
    assert tracker.finished == 1
    assert tracker.feed(DONE) == DONE and tracker.done


def test_a_large_failure_is_one() -> None:
    tracker = following()
    assert tracker.feed(event(error={"message": PADDING, "code": 500})) == b""
    assert tracker.failed == "engine_error"


@pytest.mark.parametrize("what", [{"token_ids": [1]}, {"finish_reason": "stop"}])
def test_a_large_event_that_cannot_be_read_ends_the_stream(what: dict[str, object]) -> None:
    tracker = following()
    assert tracker.feed(event(choices=[what] * 5000, x=PADDING)) == b""
    assert tracker.failed == "event_too_long"


def test_a_glance_takes_texts_for_texts() -> None:
    seen = glance(orjson.dumps({"text": '"error": 1, "finish_reason":"stop"', "error": None, "finish_reason": None}))
    assert seen is not None and not seen.failed and seen.finished == 0


def test_an_error_of_the_clients_is_an_answer() -> None:
    tracker = following()
    refusal = event_of(b'{"error":{"message":"Grammar error","type":"BadRequestError","code":400}}')
    assert tracker.feed(refusal + DONE) == refusal + DONE
    assert tracker.refused and tracker.done and tracker.failed is None


@pytest.mark.parametrize("code", [500, 503, None, "400"])
def test_another_error_is_a_failure(code: object) -> None:
    tracker = following()
    assert tracker.feed(event_of(orjson.dumps({"error": {"message": "x", "code": code}}))) == b""
    assert tracker.failed == "engine_error"


@pytest.mark.parametrize("resume", [Resume.EXACT, Resume.BEST_EFFORT])
def test_of_an_endless_reply_not_all_is_kept(resume: Resume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "MAX_KEPT_BYTES", 1000)
    tracker = following(resume=resume)
    for number in range(1000):
        said = event(choices=choice(delta={"content": "hello"}, token_ids=[number] * 3))
        assert tracker.feed(said)
        assert len(tracker.ids) + sum(map(len, tracker.texts or ())) <= 1100
    assert tracker.obstacle == "the reply is too long"
    assert tracker.tokens == 1000


def test_what_nobody_can_read_is_not_read_for_ever() -> None:
    tracker = following()
    for _ in range(1000):
        assert tracker.feed(b"data: {nonsense\n\n")
    assert tracker.obstacle is not None
    assert tracker._strange <= 101


def continued() -> tuple[Tracker, Continued]:
    """A stream of which a part has been said, and who goes on with it."""
    tracker = following()
    tracker.feed(event(choices=choice(delta={"role": "assistant"}), prompt_token_ids=[1, 2]))
    tracker.feed(event(choices=choice(delta={"content": "hello"}, token_ids=[3])))
    tracker.begin_again()
    return tracker, Continued(tracker, tracker.asked.kind)


def test_who_goes_on_repeats_a_long_prompt() -> None:
    tracker, goes_on = continued()
    assert goes_on.feed(event(choices=choice(delta={"role": "assistant"}), prompt_token_ids=PROMPT)) == b""
    said = goes_on.feed(event(choices=choice(delta={"content": " world"}, token_ids=[4])))
    assert b" world" in said and tracker.failed is None


@pytest.mark.parametrize(
    ("said", "failed"),
    [
        ({"error": {"message": "too long", "code": 400}}, "refused"),
        ({"error": {"message": "dead", "code": 500}}, "engine_error"),
        ({"choices": choice(delta={"content": PADDING})}, "event_too_long"),
        ({"choices": [{}] * 2000}, "engine_error"),
    ],
)
def test_who_cannot_go_on(said: dict[str, object], failed: str) -> None:
    tracker, goes_on = continued()
    assert goes_on.feed(event(**said)) == b""
    assert tracker.failed == failed


def test_who_goes_on_without_end_is_stopped() -> None:
    tracker, goes_on = continued()
    for _ in range(100):
        goes_on.feed(b"x" * (128 << 10))
    assert tracker.failed == "event_too_long"
