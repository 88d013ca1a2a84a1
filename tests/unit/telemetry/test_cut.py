# SPDX-License-Identifier: Apache-2.0
"""Whatever a stranger sends as a name, what is shown of it is short and can be written down."""

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllm_gateway.telemetry.cut import LONGEST, cut


@pytest.mark.parametrize("text", ["", "gemma3-4B", "Qwen/Qwen2.5-7B-Instruct", "ä" * LONGEST, "x" * LONGEST])
def test_a_short_one_is_shown_as_it_is(text: str) -> None:
    assert cut(text) == text


def test_a_long_one_is_cut() -> None:
    assert cut("x" * 90_000_000) == "x" * (LONGEST - 3) + "..."


@given(st.text(st.characters(), max_size=300))
@example("\udcff")
def test_any_can_be_encoded(text: str) -> None:
    shown = cut(text)
    assert orjson.loads(orjson.dumps(shown)) == shown
    assert len(shown) <= LONGEST * len("\\udcff")
