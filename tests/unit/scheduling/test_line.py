# SPDX-License-Identifier: Apache-2.0
"""The line's promises: first come, first served for each client, a turn for every client, and nobody starves."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_gateway.scheduling.line import PATIENCE, FairLine


@dataclass(slots=True, eq=False)
class One:
    client: str
    priority: int = 0
    number: int = 0


def line_of(*clients: str) -> FairLine[One]:
    line: FairLine[One] = FairLine()
    for number, client in enumerate(clients):
        line.add(One(client, number=number))
    return line


def served(line: FairLine[One]) -> str:
    return "".join(line.pop().client for _ in range(line.length))


@pytest.mark.parametrize(
    ("came", "went"),
    [("aaa", "aaa"), ("aaaab", "abaaa"), ("abab", "abab"), ("aaabbc", "abcaba"), ("aab", "aba")],
)
def test_each_client_has_its_turn(came: str, went: str) -> None:
    assert served(line_of(*came)) == went


def test_a_client_that_comes_again_has_its_turn_after_the_others() -> None:
    line = line_of("a", "b", "c")
    assert line.pop().client == "a"
    line.add(One("a"))
    assert served(line) == "bca"


def test_one_request_does_not_wait_for_five_hundred_of_another_client() -> None:
    line = line_of(*["greedy"] * 500, "modest")
    assert [line.pop().client for _ in range(2)] == ["greedy", "modest"]


def test_one_that_left_is_not_served_and_its_client_keeps_its_turn() -> None:
    line = line_of("b")
    first, second = One("a"), One("a")
    line.add(first)
    line.add(second)
    line.remove(first)
    line.remove(first)
    assert [line.pop().client, line.pop()] == ["b", second]
    assert not line.length


def test_the_higher_priority_goes_first_but_not_for_ever() -> None:
    line: FairLine[One] = FairLine()
    for _ in range(3 * PATIENCE):
        line.add(One("h", 10))
    for _ in range(2):
        line.add(One("l", -10))
    assert served(line)[: 2 * PATIENCE + 2] == ("h" * PATIENCE + "l") * 2


@pytest.mark.parametrize(
    ("waiting", "newcomer", "out"),
    [
        (["greedy"] * 9 + ["modest"], "new", "greedy"),
        (["greedy"] * 9 + ["modest"], "modest", "greedy"),
        (["greedy"] * 9 + ["modest"], "greedy", None),
        (["a", "a", "b", "b"], "b", None),
        (["a", "a", "a", "b", "b"], "b", None),  # they would only change places
        (["a", "a", "b", "b"], "c", "a"),
        (["a", "b", "c"], "d", None),
        ([], "a", None),
    ],
)
def test_who_has_most_waiting_makes_way_for_who_has_less(waiting: list[str], newcomer: str, out: str | None) -> None:
    line = line_of(*waiting)
    made_way = line.make_way(newcomer, 0)
    assert (made_way and made_way.client) == out
    if made_way is not None:
        assert made_way.number == max(number for number, client in enumerate(waiting) if client == out), "the last one"
    assert line.length == len(waiting) - bool(out)


def test_a_lower_priority_makes_way_for_a_higher_one_and_never_the_other_way_round() -> None:
    line: FairLine[One] = FairLine()
    for number, (client, priority) in enumerate([("a", 0), ("a", 0), ("b", -10), ("c", -10), ("c", -10), ("h", 10)]):
        line.add(One(client, priority, number))
    assert line.make_way("d", -20) is None
    went = [line.make_way("h", 10) for _ in range(6)]
    assert [one and one.number for one in went] == [4, 2, 3, 1, 0, None]
    assert line.length == 1


def test_clearing_takes_out_everybody() -> None:
    line = line_of("a", "b", "a")
    assert sorted(one.number for one in line.clear()) == [0, 1, 2]
    assert not line.length
    line.add(One("c"))
    assert served(line) == "c"


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), min_size=1, max_size=80),
    st.integers(0, 3),
)
def test_of_any_places_in_a_row_each_priority_has_one(newcomers: list[tuple[str, int]], watched: int) -> None:
    """As long as others keep coming, one after each place that is given."""
    line: FairLine[One] = FairLine()
    for priority in range(4):
        line.add(One("a", priority))
    since = 0
    for client, priority in newcomers:
        line.add(One(client, priority))
        line.add(One("a", watched))  # it always waits
        since = 0 if line.pop().priority == watched else since + 1
        assert since < PATIENCE + 4


class Line(RuleBasedStateMachine):
    """Random arrivals, departures and places, against the promises put plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.line: FairLine[One] = FairLine()
        self.waiting: list[One] = []
        self.number = 0
        self.turns: dict[tuple[int, str], set[str]] = {}
        """For each client that waits: who of its priority has had a turn since its own."""

    @rule(client=st.sampled_from("abc"), priority=st.sampled_from([-1, 0, 1]))
    def come(self, client: str, priority: int) -> None:
        one = One(client, priority, self.number)
        self.number += 1
        self.waiting.append(one)
        self.line.add(one)
        self.turns.setdefault((priority, client), set())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        self.line.remove(one)
        self.waiting.remove(one)
        self.forget_those_who_left()

    @precondition(lambda self: self.waiting)
    @rule()
    def serve(self) -> None:
        one = self.line.pop()
        of_client = [w for w in self.waiting if (w.client, w.priority) == (one.client, one.priority)]
        assert one is of_client[0], "first come, first served"
        self.waiting.remove(one)
        for (priority, client), others in self.turns.items():
            if priority == one.priority and client != one.client:
                assert one.client not in others, "two turns while another waits"
                others.add(one.client)
        self.turns[one.priority, one.client] = set()
        self.forget_those_who_left()

    @rule(client=st.sampled_from("abcd"), priority=st.sampled_from([-1, 0, 1]))
    def make_way(self, client: str, priority: int) -> None:
        out = self.line.make_way(client, priority)
        lowest = [one for one in self.waiting if one.priority == min(other.priority for other in self.waiting)]
        numbers = {name: sum(one.client == name for one in lowest) for name in "abcd"}
        if (
            not lowest
            or lowest[0].priority > priority
            or (lowest[0].priority == priority and max(numbers.values()) <= numbers[client] + 1)
        ):
            assert out is None
        else:
            assert out is not None
            assert out in lowest
            assert numbers[out.client] == max(numbers.values())
            assert out is [one for one in lowest if one.client == out.client][-1]
            self.waiting.remove(out)
            self.forget_those_who_left()

    def forget_those_who_left(self) -> None:
        there = {(one.priority, one.client) for one in self.waiting}
        self.turns = {key: others for key, others in self.turns.items() if key in there}
        for others_of, others in self.turns.items():
            others &= {client for priority, client in there if priority == others_of[0]}

    @invariant()
    def nobody_is_lost(self) -> None:
        assert self.line.length == len(self.waiting)


TestLine = Line.TestCase
