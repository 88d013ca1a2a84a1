# SPDX-License-Identifier: Apache-2.0
"""The registry: names, numbers, the order of the table, and the moves that are allowed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_gateway.fleet.instance import IllegalTransition, Instance, State, safe_name
from vllm_gateway.fleet.registry import ContainerRegistry, Leftover
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.routing import Address

ALLOWED = {
    "starting": {"ready", "sleeping", "draining", "stopping", "failed"},
    "ready": {"falling_asleep", "draining", "failed"},
    "falling_asleep": {"sleeping", "ready", "draining", "failed"},
    "sleeping": {"waking", "draining", "failed"},
    "waking": {"ready", "sleeping", "draining", "failed"},
    "draining": {"ready", "sleeping", "stopping", "failed"},
    "stopping": {"failed"},
    "failed": set(),
}


def add(registry: ContainerRegistry, model: str, number: int, state: State = State.STARTING) -> Instance:
    name = registry.name_of(model, number)
    one = Instance(registry.new_id(), name, model, number, "hash", max_in_flight=4, state=state)
    one.running = Running(name, Address("127.0.0.1", 8000 + number))
    return registry.add(one)


def test_the_table_holds_the_ready_ones_in_the_order_of_their_numbers() -> None:
    registry = ContainerRegistry("vllm_server")
    for number in (10, 2, 1):
        add(registry, "a", number, State.READY)
    for number, state in enumerate(State, start=20):
        if state is not State.READY:
            add(registry, "a", number, state)
    registry.set_suspect(add(registry, "a", 3, State.READY), True)
    add(registry, "a", 4, State.READY).running = None
    add(registry, "b", 1, State.READY)
    table = registry.table()
    assert [route.name[-2:] for route in table.of("a")] == ["_1", "_2", "_3", "10"]
    assert [route.suspect for route in table.of("a")] == [False, False, True, False]
    assert [(route.address.port, route.max_in_flight) for route in table.of("b")] == [(8001, 4)]
    assert table.of("unknown") == ()


def test_the_lowest_free_number_is_taken_again() -> None:
    registry = ContainerRegistry("vllm_server")
    ones = [add(registry, "a", number) for number in (1, 2, 3)]
    assert registry.free_number("a") == 4
    registry.remove(ones[1])
    assert registry.free_number("a") == 2
    assert registry.free_number("b") == 1


def test_the_name_of_a_container_that_cannot_be_removed_is_not_given_again() -> None:
    registry = ContainerRegistry("vllm_server")
    registry.leftovers["handle"] = Leftover("vllm_server_a_instance_1", "device or resource busy")
    assert (registry.free_number("a"), registry.free_number("b")) == (2, 1)


def test_models_whose_names_look_alike_to_docker_share_no_name() -> None:
    registry = ContainerRegistry("vllm_server")
    add(registry, "org/model", 1)
    assert registry.free_number("org-model") == 2


def test_an_id_is_never_used_again() -> None:
    registry = ContainerRegistry("vllm_server")
    registry.remove(one := add(registry, "a", 1))
    assert registry.get(one.instance_id) is None
    assert add(registry, "a", 1).instance_id != one.instance_id


@given(st.text(max_size=40))
def test_every_name_is_one_that_docker_allows(model: str) -> None:
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", ContainerRegistry("vllm_server").name_of(model, 1))


def test_safe_names() -> None:
    assert safe_name("gemma3-4B") == "gemma3-4B"
    assert safe_name("org/model:tag") == "org-model-tag"
    assert safe_name("//") == "model"


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("to", State)
def test_only_the_moves_that_make_sense_are_allowed(state: State, to: State) -> None:
    registry = ContainerRegistry("vllm_server")
    one = add(registry, "a", 1, state)
    before = registry.version
    if to.value in ALLOWED[state.value]:
        registry.move(one, to, "a reason", 5.0)
        assert (one.state, one.why, one.since, registry.version) == (to, "a reason", 5.0, before + 1)
    else:
        with pytest.raises(IllegalTransition, match=f"{state.value} -> {to.value}"):
            registry.move(one, to, "a reason", 5.0)
        assert (one.state, registry.version) == (state, before)


def test_ready_since_is_the_first_time_and_a_reprieve_keeps_it() -> None:
    registry = ContainerRegistry("vllm_server")
    one = add(registry, "a", 1)
    for now, to in enumerate((State.READY, State.DRAINING, State.READY), start=7):
        registry.move(one, to, "", float(now))
    assert one.ready_at == 7.0


def test_the_table_tells_limit_and_weight() -> None:
    registry = ContainerRegistry("p")
    one = registry.add(Instance("i1", "p_m_instance_1", "m", 1, "h", 8, 2.0))
    one.running = Running("handle", Address("127.0.0.1", 8001))
    registry.move(one, State.READY, "test", 5.0)
    (route,) = registry.table().of("m")
    assert (route.max_in_flight, route.weight, route.ready_since) == (8, 2.0, 5.0)
    before = registry.version
    registry.set_share(one, 4, 1.0)
    assert registry.version > before
    (route,) = registry.table().of("m")
    assert (route.max_in_flight, route.weight) == (4, 1.0)
