# SPDX-License-Identifier: Apache-2.0
"""The table of events is in order, and its page shows it as it is."""

import re
from pathlib import Path

import pytest

from vllm_gateway.telemetry import events

DOCS = Path(__file__).parents[3] / "docs"
GOOD: dict[str, object] = {
    "timestamp": "2025-01-31T12:00:00.123456Z",
    "level": "info",
    "event": "gateway_ready",
    "address": "http://127.0.0.1:8000",
}


def test_the_page_is_current() -> None:
    page = (DOCS / "logging.md").read_text("utf-8")
    assert page == events.document(), "run: python -m vllm_gateway.telemetry.events > docs/logging.md"


@pytest.mark.parametrize("event", events.TABLE.values(), ids=lambda event: event.name)
def test_an_event_is_well_formed(event: events.Event) -> None:
    assert getattr(events, event.name.upper()) is event
    fields = (*event.required, *event.optional)
    assert len(set(fields)) == len(fields)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in (event.name, *fields))
    assert not {"timestamp", "level", "event"}.intersection(fields)
    assert event.description.endswith(".")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"event": "nonsense"}, "unknown event"),
        ({"level": "error"}, "level"),
        ({"timestamp": "2025-01-31 12:00"}, "timestamp"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"request_id": "r"}, None),
    ],
)
def test_validate_tells_what_is_wrong(change: dict[str, object], problem: str | None) -> None:
    found = events.validate({**GOOD, **change})
    assert (problem in found[0]) if problem else not found


def test_validate_misses_required_fields() -> None:
    assert events.validate({key: value for key, value in GOOD.items() if key != "address"})
