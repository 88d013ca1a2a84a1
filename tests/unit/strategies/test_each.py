# SPDX-License-Identifier: Apache-2.0
"""What each strategy goes by."""

from collections import Counter
from random import Random

from tests.unit.strategies.play import Play, request
from tests.unit.strategies.test_strategies import REQUEST, instances
from vllm_gateway.scheduling import EngineMetrics, RequestInfo, make_strategy


def test_smooth_weights_spread_the_turns() -> None:
    strategy, those = make_strategy("weighted_round_robin"), instances(0, 0, 0)
    those[0].weight = 3.0
    took = "".join(strategy.choose(REQUEST, those).instance_id[1] for _ in range(10))
    assert Counter(took) == {"0": 6, "1": 2, "2": 2}
    assert "000" not in took[:5]


def test_random_goes_by_weight() -> None:
    strategy, those = make_strategy("random", random=Random(1)), instances(0, 0)
    those[0].weight = 3.0
    took = Counter(strategy.choose(REQUEST, those).instance_id for _ in range(4000))
    assert 2800 < took["i0"] < 3200


def test_power_of_two_never_takes_the_busiest() -> None:
    strategy, those = make_strategy("power_of_two", random=Random(1)), instances(7, 1, 2)
    assert {strategy.choose(REQUEST, those).instance_id for _ in range(100)} == {"i1", "i2"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_peak_ewma_leaves_a_slow_instance_and_comes_back() -> None:
    clock = Clock()
    strategy, those = make_strategy("peak_ewma", clock=clock), instances(0, 0)

    def ask(seconds: float) -> str:
        asked = request(0)
        chosen = strategy.choose(asked, those)
        clock.now += seconds
        strategy.first_byte(asked, chosen)  # type: ignore[attr-defined]
        return chosen.instance_id

    assert [ask(5.0), ask(0.1)] == ["i0", "i1"]
    later = [ask(0.1) for _ in range(600)]
    assert set(later[:200]) == {"i1"}
    assert "i0" in later, "a peak is forgotten"


def test_least_tokens_counts_tokens_not_requests() -> None:
    play = Play("least_tokens")
    for number in range(2):
        play.join(number * 3)
    assert play.send(request(0, blocks=100)) is play.views[0]
    assert [play.send(request(n, blocks=1)) for n in range(1, 6)] == [play.views[1]] * 5


def test_a_session_stays_until_its_instance_is_overloaded() -> None:
    play = Play("session_affinity")
    for number in range(4):
        play.join(number * 3)
    home = play.send(request(0, conversation=1))
    assert home is not None
    for number in range(8):
        play.send(request(number, conversation=2 + number))
    assert play.send(request(9, conversation=1)) is home
    heavy = [play.send(request(10 + number, conversation=1)) for number in range(12)]
    assert any(one is not home for one in heavy), "a heavy session spills over"
    assert max(view.in_flight for view in play.views) <= -(-1.25 * sum(v.in_flight for v in play.views) // 4)


def test_a_session_is_found_by_cookie_or_user() -> None:
    strategy, those = make_strategy({"name": "session_affinity", "cookie": "sid"}), instances(*[0] * 8)
    by_cookie, by_user = (
        RequestInfo("r", "m", "/", False, b"{}", raw_headers=((b"Cookie", b"a=1; sid=me"),)),
        RequestInfo("r", "m", "/", False, b'{"user": "me"}'),
    )
    for one in (by_cookie, by_user):
        assert len({strategy.choose(one, those).instance_id for _ in range(8)}) == 1


def test_when_an_instance_leaves_only_its_own_sessions_move() -> None:
    strategy, those = make_strategy({"name": "session_affinity", "overload": 100}), instances(*[0] * 5)
    sessions = [request(0, conversation=number) for number in range(100)]
    before = [strategy.choose(one, those).instance_id for one in sessions]
    after = [strategy.choose(one, those[:-1]).instance_id for one in sessions]
    assert all(now == then for now, then in zip(after, before, strict=True) if then != "i4")
    assert min(Counter(before).values()) > 8, "sessions are spread"


def test_engine_metrics_count_what_came_since_the_reading() -> None:
    clock = Clock()
    strategy, those = make_strategy("engine_metrics", clock=clock), instances(0, 0)
    those[0].metrics = EngineMetrics(100.0, running=2, kv_usage=0.1)
    those[1].metrics = EngineMetrics(100.0, running=4, kv_usage=0.1)
    assert [strategy.choose(REQUEST, those).instance_id for _ in range(2)] == ["i0", "i0"]
    those[0].metrics = EngineMetrics(101.0, running=4, waiting=1, kv_usage=0.9)
    assert strategy.choose(REQUEST, those) is those[1]
    clock.now += 60  # nothing was heard since: requests in flight have to do
    those[0].in_flight, those[1].in_flight = 1, 3
    assert strategy.choose(REQUEST, those) is those[0]


def test_a_filter_that_leaves_nobody_is_passed_over() -> None:
    chain = {
        "name": "chain",
        "filters": [{"strategy": "least_connections", "at_most": 2}],
        "scorers": [{"strategy": "least_tokens"}],
    }
    strategy, those = make_strategy(chain), instances(3, 1, 1)
    assert {strategy.choose(REQUEST, those).instance_id for _ in range(10)} == {"i1", "i2"}
    assert strategy.choose(REQUEST, instances(5, 4)) is not None
