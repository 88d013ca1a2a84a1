# SPDX-License-Identifier: Apache-2.0
"""However a head is cut into reads, it has the same fate, and no byte is looked at again and again."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllm_gateway.api.begun_head import END, MAX_FIELDS, BegunHead, Fate, request_line_of

LIMIT = 1000
HEAD = b"POST /v1/x HTTP/1.1\r\nHost: x\r\n"
FATES = {
    HEAD + b"\r\n": Fate.WHOLE,
    HEAD + b"X: " + b"y" * (LIMIT - len(HEAD) - 3 - len(END)) + END: Fate.WHOLE,
    HEAD + b"X: " + b"y" * (LIMIT - len(HEAD) - 2 - len(END)) + END: Fate.TOO_LARGE,
    HEAD + b"\r\n" + b"body\n" * 1000: Fate.WHOLE,
    HEAD: Fate.MORE,
    HEAD + b"\r": Fate.MORE,
    b"GET": Fate.MORE,
    HEAD + b"y" * LIMIT: Fate.TOO_LARGE,
    HEAD + b"\n": Fate.NO_HEAD,
    HEAD + b"X\nY": Fate.NO_HEAD,
    b"hello": Fate.NO_HEAD,
    b"\n": Fate.NO_HEAD,
    b"A" * 22: Fate.NO_HEAD,
    b"GET\t/": Fate.NO_HEAD,
}


@given(st.sampled_from(list(FATES)), st.lists(st.integers(0, LIMIT), max_size=20))
@example(HEAD + b"\r\n", list(range(40)))
def test_any_split_has_the_same_fate(sent: bytes, cuts: list[int]) -> None:
    places = sorted({min(cut, len(sent)) for cut in cuts})
    head = BegunHead(LIMIT, 0.0)
    fate = Fate.MORE
    for start, end in zip([0, *places], [*places, len(sent)], strict=True):
        fate = head.add(sent[start:end])
        if fate is not Fate.MORE:
            break
    assert fate is FATES[sent]
    if fate is Fate.WHOLE:
        assert sent.startswith(head.data)


@pytest.mark.parametrize(("fields", "fate"), [(MAX_FIELDS, Fate.WHOLE), (MAX_FIELDS + 1, Fate.TOO_LARGE)])
def test_so_many_fields(fields: int, fate: Fate) -> None:
    assert BegunHead(1 << 16, 0.0).add(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * fields + b"\r\n") is fate


def test_a_head_that_drips_costs_no_more_than_its_bytes() -> None:
    def cost_s(size: int) -> float:
        head = BegunHead(1 << 20, 0.0)
        began = time.process_time()
        for _ in range(size):
            head.add(b"y")
        return time.process_time() - began

    first = BegunHead(1 << 20, 0.0)
    assert first.add(HEAD) is Fate.MORE
    assert cost_s(80_000) < 20 * cost_s(10_000), "eight times as many: about eight times as long"


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (b"GET /a?b=c HTTP/1.1\r\n", ("GET", "/a")),
        (b"GET /a", ("GET", "/a")),
        (b"GET ", ("UNKNOWN", "/")),
        (b"\xff\xfe", ("UNKNOWN", "/")),
    ],
)
def test_what_the_log_says_of_it(seen: bytes, line: tuple[str, str]) -> None:
    assert request_line_of(seen) == line
