# SPDX-License-Identifier: Apache-2.0
"""Images are fetched before a GPU is taken: nobody waits behind a pull but those who need it."""

from collections.abc import Sequence

import pytest

from tests.unit.fleet.simulation import FleetInTheHead, spec, started, stopped
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.images import FRESH_S, LINGER_S
from vllm_gateway.fleet.instance import State


def fetches(effects: Sequence[e.Effect]) -> list[tuple[str, str]]:
    return [(effect.model, effect.image) for effect in effects if isinstance(effect, e.FetchImage)]


def leaves(effects: Sequence[e.Effect]) -> list[tuple[str, str]]:
    return [(effect.model, effect.image) for effect in effects if isinstance(effect, e.LeaveImage)]


def not_fetched(model: str, image: str) -> e.ImageNotFetched:
    return e.ImageNotFetched(model, image, "its image could not be fetched", "manifest unknown")


def test_nothing_is_reserved_before_the_image_is_there() -> None:
    fleet = FleetInTheHead(spec("a", image="new"))
    assert fetches(fleet.want("a")) == [("a", "new")]
    assert not fleet.of("a")
    assert fleet.supervisor.models["a"].why_fewer == "its image is being fetched"
    assert not fetches(fleet.tick(500)), "once is enough"
    assert started(fleet.hear(e.ImageFetched("a", "new"))) == [one.instance_id for one in fleet.of("a")]


def test_a_pull_that_hangs_keeps_nobody_else_waiting_and_nobody_from_the_room() -> None:
    fleet = FleetInTheHead(spec("a", image="hangs"), spec("b"), spec("c", 2), gpus=1, footprints={"b": 60, "c": 20})
    fleet.want("a")
    fleet.tick(500)
    assert started(fleet.want("b"))
    fleet.ready(fleet.of("b")[0])
    assert started(fleet.want("c"))
    fleet.ready(fleet.of("c")[0])
    assert fleet.of("c", State.STARTING), "further instances neither wait for it"
    assert not fleet.of("a")


def test_nobody_makes_way_before_it_is_there() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b", image="new"))
    a = fleet.run("a")
    assert fetches(fleet.want("b")) == [("b", "new")]
    fleet.tick(10)
    assert a.state is State.READY
    assert stopped(fleet.hear(e.ImageFetched("b", "new"))) == [a.instance_id]


def test_it_is_fetched_while_its_model_waits_for_room() -> None:
    fleet = FleetInTheHead(spec("a"), spec("b", image="new"), min_resident_s=600)
    a = fleet.run("a")
    fleet.activity.busy[a.instance_id] = 1
    assert fetches(fleet.want("b")) == [("b", "new")]
    fleet.hear(e.ImageFetched("b", "new"))
    assert not fetches(fleet.tick(599)), "it was fetched for those who wait"
    assert fleet.of("a", State.READY) == [a]
    fleet.tick(1)
    assert fleet.of("a", State.DRAINING) == [a]


def test_what_can_never_fit_is_not_fetched() -> None:
    fleet = FleetInTheHead(spec("huge", image="new"), footprints={"huge": 1000})
    assert not fetches(fleet.want("huge"))
    assert [refusal.code for _, refusal in fleet.refusals] == ["no_room"]


def test_a_failure_is_told_and_tried_again_ever_later() -> None:
    fleet = FleetInTheHead(spec("a", image="new"))
    fleet.want("a")
    fleet.hear(not_fetched("a", "new"))
    ((model, refusal),) = fleet.refusals
    assert (model, refusal.code) == ("a", "model_start_failed")
    state = fleet.supervisor.models["a"]
    assert "its image could not be fetched" in refusal.message
    assert str(state.failure_id) in refusal.message
    assert "manifest unknown" not in refusal.message
    assert "manifest unknown" in str(state.last_error)
    for count, pause_s in enumerate((1, 2, 4), 2):
        fleet.leave("a")
        assert not fetches([*fleet.tick(pause_s - 0.5), *fleet.want("a")])
        assert len(fleet.refusals) == 2 * count - 2, "who comes meanwhile is told at once"
        fleet.now += 0.5
        assert fetches(fleet.want("a")) == [("a", "new")]
        fleet.hear(not_fetched("a", "new"))
    fleet.leave("a")
    assert fetches(fleet.hear(e.Retry("a"))) == [("a", "new")]
    assert started(fleet.hear(e.ImageFetched("a", "new")))


def test_a_pull_that_nobody_wants_is_given_up_after_a_while() -> None:
    fleet = FleetInTheHead(spec("a", image="new"))
    fleet.want("a")
    fleet.leave("a")
    assert not leaves(fleet.tick(LINGER_S - 1))
    assert not fetches(fleet.want("a")), "it still goes on"
    fleet.leave("a")
    assert not leaves(fleet.tick(LINGER_S - 1))
    assert leaves(fleet.tick(1)) == [("a", "new")]
    assert not fetches(fleet.tick(100))
    fleet.hear(e.ImageFetched("a", "new"))
    assert fetches(fleet.want("a")) == [("a", "new")], "what came too late was said of nobody's pull"


def test_what_was_fetched_before_the_client_came_back_is_taken_if_it_is_fresh() -> None:
    fleet = FleetInTheHead(spec("a", image="new"))
    fleet.want("a")
    fleet.leave("a")
    fleet.hear(e.ImageFetched("a", "new"))
    assert not fleet.of("a")
    fleet.now += FRESH_S - 1
    assert started(fleet.want("a"))


def test_it_is_looked_at_again_before_a_later_start_and_after_one_that_failed() -> None:
    fleet = FleetInTheHead(spec("a", image="new"))
    fleet.want("a")
    fleet.hear(e.ImageFetched("a", "new"))
    (one,) = fleet.of("a")
    fleet.hear(e.Died(one.instance_id, "its engine could not be launched", detail="No such image"))
    fleet.hear(e.Gone(one.instance_id))
    fleet.now += 2
    assert fetches(fleet.want("a")) == [("a", "new")]
    fleet.hear(e.ImageFetched("a", "new"))
    (one,) = fleet.of("a")
    fleet.ready(one)
    fleet.now += FRESH_S
    assert fetches(fleet.hear(e.Died(one.instance_id, "killed"))) == [("a", "new")]


@pytest.mark.parametrize("room", [True, False])
def test_a_changed_image_is_fetched_before_the_first_instance_is_replaced(room: bool) -> None:
    fleet = FleetInTheHead(spec("a", image="old"), footprints={"a": 40 if room else 60})
    fleet.want("a")
    fleet.hear(e.ImageFetched("a", "old"))
    (old,) = fleet.of("a")
    fleet.ready(old)
    assert fetches(fleet.reconfigure(spec("a", image="new", spec_hash="new"))) == [("a", "new")]
    fleet.tick(300)
    fleet.hear(not_fetched("a", "new"))
    assert fleet.of("a") == [old]
    assert old.state is State.READY
    assert not fleet.refusals
    assert fetches(fleet.tick(1)) == [("a", "new")]
    fleet.hear(e.ImageFetched("a", "new"))
    if room:
        assert fleet.of("a", State.READY) == [old]
        fleet.ready(fleet.of("a", State.STARTING)[0])
    assert fleet.of("a", State.STOPPING) == [old]


def test_an_image_of_settings_that_have_changed_is_not_waited_for() -> None:
    fleet = FleetInTheHead(spec("a", image="old"))
    fleet.want("a")
    effects = fleet.reconfigure(spec("a", image="new", spec_hash="new"))
    assert (leaves(effects), fetches(effects)) == ([("a", "old")], [("a", "new")])
    fleet.hear(e.ImageFetched("a", "old"))
    fleet.hear(not_fetched("a", "old"))
    assert not fleet.of("a")
    assert not fleet.refusals
    assert started(fleet.hear(e.ImageFetched("a", "new")))


def test_with_its_model_goes_its_pull() -> None:
    fleet = FleetInTheHead(spec("a", image="new"), spec("b"))
    fleet.want("a")
    fleet.activity.waits["a"] = 0
    assert leaves(fleet.reconfigure(spec("b"))) == [("a", "new")]
    fleet.hear(e.ImageFetched("a", "new"))
    assert not fleet.of("a")


def test_of_a_gateway_that_hands_over_nothing_is_fetched() -> None:
    fleet = FleetInTheHead(spec("a", image="new"))
    fleet.want("a")
    fleet.hear(e.HandOver(active=True))
    fleet.hear(e.ImageFetched("a", "new"))
    assert not fleet.of("a")
    assert fetches(fleet.hear(e.HandOver(active=False))) == [("a", "new")]


def test_two_models_of_one_image_need_it_each_for_itself() -> None:
    fleet = FleetInTheHead(spec("a", image="both"), spec("b", image="both"), gpus=2)
    assert fetches([*fleet.want("a"), *fleet.want("b")]) == [("a", "both"), ("b", "both")]
    assert started(fleet.hear(e.ImageFetched("b", "both"))) == [one.instance_id for one in fleet.of("b")]
    assert not fleet.of("a")
