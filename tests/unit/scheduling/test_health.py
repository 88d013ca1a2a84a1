# SPDX-License-Identifier: Apache-2.0
"""Instances whose requests fail get none for a while, and never all of them."""

from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.configuration.settings import Ejection
from vllm_gateway.scheduling.health import FORGET_S, LONGEST_PAUSE_S, PassiveHealth
from vllm_gateway.scheduling.types import Outcome

TWO = ("a", "b")


def health(**settings: float) -> PassiveHealth:
    made = PassiveHealth(Ejection.model_validate(settings))
    made.keep(TWO)
    return made


def fail(made: PassiveHealth, name: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        made.ended(name, object(), Outcome.BROKEN, now)


def test_failures_in_a_row_eject() -> None:
    made = health()
    fail(made, "a", 2)
    made.ended("a", object(), Outcome.OK, 0.0)
    fail(made, "a", 2)
    assert not made.is_ejected("a")
    change = made.ended("a", object(), Outcome.UNREACHABLE, 0.0)
    assert change is not None
    assert (change.instance_id, change.ejected, change.pause_s) == ("a", True, 1.0)


def test_a_rate_of_errors_ejects() -> None:
    made = health()
    for _ in range(5):
        made.ended("a", object(), Outcome.SERVER_ERROR, 1.0)
        made.ended("a", object(), Outcome.CLIENT_ERROR, 1.0)
    made.ended("a", object(), Outcome.SERVER_ERROR, 1.0)
    assert made.is_ejected("a")


def test_what_clients_do_wrong_or_leave_does_not_count() -> None:
    made = health()
    for _ in range(50):
        made.ended("a", object(), Outcome.CLIENT_ERROR, 1.0)
        made.ended("a", object(), Outcome.CLIENT_GONE, 1.0)
    assert not made.troubled


def test_the_last_one_is_never_ejected() -> None:
    made = health()
    fail(made, "a", 3)
    fail(made, "b", 30)
    assert made.is_ejected("a")
    assert not made.is_ejected("b")


def test_a_probe_decides_and_pauses_grow() -> None:
    made = health()
    now = 0.0
    fail(made, "a", 3, now)
    for pause in (1.0, 2.0, 4.0):
        assert not made.wants_probe("a", now + pause - 0.01)
        now += pause
        assert made.wants_probe("a", now)
        probe = object()
        made.placed("a", probe)
        assert not made.wants_probe("a", now)
        made.ended("a", object(), Outcome.OK, now)  # one from before the ejection says nothing
        assert made.is_ejected("a")
        made.ended("a", probe, Outcome.BROKEN, now)
    now += 8.0
    probe = object()
    made.placed("a", probe)
    change = made.ended("a", probe, Outcome.OK, now)
    assert change is not None and not change.ejected
    assert not made.is_ejected("a")


def test_a_request_that_comes_for_want_of_another_instance_is_no_probe_if_it_fails() -> None:
    made = health()
    fail(made, "a", 3)
    for outcome, ejected in (Outcome.BROKEN, True), (Outcome.OK, False):
        made.placed("a", request := object())
        change = made.ended("a", request, outcome, 0.5)
        assert (change is None) is ejected
        assert made.is_ejected("a") is ejected
    assert made.ejections == 1


def test_a_probe_succeeds_as_soon_as_its_reply_begins() -> None:
    made = health()
    fail(made, "a", 3)
    probe = object()
    made.placed("a", probe)
    assert made.is_probe("a", probe)
    assert made.answers("a", object(), 2.0) is None
    change = made.answers("a", probe, 2.0)
    assert change is not None and not change.ejected
    assert made.ended("a", probe, Outcome.OK, 60.0) is None
    assert not made.is_ejected("a")


def test_a_probe_whose_client_leaves_makes_room_for_another() -> None:
    made = health()
    fail(made, "a", 3)
    probe = object()
    made.placed("a", probe)
    made.ended("a", probe, Outcome.CLIENT_GONE, 2.0)
    assert made.wants_probe("a", 2.0)


def test_failures_long_ago_are_forgotten() -> None:
    made = health()
    fail(made, "a", 3)
    made.placed("a", probe := object())
    made.ended("a", probe, Outcome.OK, 2.0)
    fail(made, "a", 2, now=3.0)
    made.ended("a", object(), Outcome.OK, 4.0 + FORGET_S)
    assert not made.troubled
    fail(made, "a", 2, now=5.0 + FORGET_S)
    change = made.ended("a", object(), Outcome.BROKEN, 5.0 + FORGET_S)
    assert change is not None and change.pause_s == 1.0, "pauses begin anew"


def test_what_has_left_is_forgotten() -> None:
    made = health()
    fail(made, "a", 3)
    made.keep(("b",))
    assert not made.troubled
    assert made.ended("a", object(), Outcome.BROKEN, 0.0) is None


@given(
    names=st.integers(1, 6),
    max_share=st.floats(0.1, 1.0),
    steps=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(Outcome), st.floats(0, 30)), max_size=200),
)
def test_some_always_take_requests(names: int, max_share: float, steps: list[tuple[int, Outcome, float]]) -> None:
    fleet = [f"i{number}" for number in range(names)]
    made = PassiveHealth(Ejection(max_share=max_share))
    made.keep(fleet)
    now = 0.0
    for number, outcome, passes_s in steps:
        now += passes_s
        name, request = fleet[number % names], object()
        if made.wants_probe(name, now):
            made.placed(name, request)
        change = made.ended(name, request, outcome, now)
        ejected = [one for one in fleet if made.is_ejected(one)]
        assert len(ejected) <= min(max(1, int(names * max_share)), names - 1)
        assert change is None or change.pause_s <= LONGEST_PAUSE_S
