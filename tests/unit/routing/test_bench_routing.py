# SPDX-License-Identifier: Apache-2.0
"""The routing benchmark: yardsticks as they were described, made-up traffic as it is called, tables that add up."""

import json
from pathlib import Path
from random import Random

import pytest

from bench.routing import chats, matrix
from bench.routing.__main__ import BEGIN, END, main
from bench.routing.tables import Matrix, report
from bench.routing.yardsticks import DynamoCost, Oracle, SglangCacheAware
from vllm_gateway.replay.driver import Clock, World
from vllm_gateway.replay.engine import EngineOptions, SimulatedEngine
from vllm_gateway.replay.trace import Trace, TracedRequest, read_trace
from vllm_gateway.scheduling import Address, InstanceView, Outcome, Prompt, RequestInfo

SAMPLE = Path(__file__).parents[3] / "bench" / "routing" / "sample.jsonl.gz"


def views(*in_flight: int) -> list[InstanceView]:
    return [InstanceView(f"i{n}", f"i{n}", "m", Address(), 256, in_flight=count) for n, count in enumerate(in_flight)]


def ask(number: int, *blocks: int) -> RequestInfo:
    return RequestInfo.simulated(f"r{number}", "m", Prompt(max(1, len(blocks) * 10), blocks, 10))


def world() -> World:
    engines = {f"i{n}": SimulatedEngine(EngineOptions(100, 10), lambda sequence: None) for n in range(2)}
    return World(Clock(), Random(0), engines)


def read(world: World, name: str, *blocks: int) -> None:
    """That engine has these blocks in its cache."""
    engine = world.engines[name]
    engine.submit(TracedRequest(0.0, len(blocks) * 10, 1, blocks), 0.0)
    while engine.next_s is not None:
        engine.advance()


def test_cache_aware_goes_to_the_best_match_above_its_threshold_else_to_the_smallest_tree() -> None:
    strategy = SglangCacheAware(0.5, 32, 1.0001)
    first, second = views(0, 0)
    assert strategy.choose(ask(0, 1, 2, 3, 4), [first, second]) is first
    assert strategy.choose(ask(1, 9), [first, second]) is second, "nothing matches: the smaller tree"
    assert strategy.choose(ask(2, 1, 2, 3, 5), [first, second]) is first, "three of four match"
    assert strategy.choose(ask(3, 1, 2, 6, 7), [first, second]) is second, "half is not above the threshold"


def test_cache_aware_takes_the_shortest_queue_when_the_load_is_out_of_balance() -> None:
    strategy = SglangCacheAware(0.5, 32, 1.0001)
    first, second = views(0, 0)
    strategy.choose(ask(0, 1, 2), [first, second])
    first.in_flight = 32
    assert strategy.choose(ask(1, 1, 2), [first, second]) is first
    first.in_flight = 33
    assert strategy.choose(ask(2, 1, 2), [first, second]) is second


def test_dynamo_weighs_blocks_to_read_against_blocks_held() -> None:
    known = world()
    read(known, "i0", 1, 2, 3)
    strategy = DynamoCost(known)
    first, second = views(0, 0)
    assert strategy.choose(ask(0, 1, 2, 3, 4), [first, second]) is first, "1 + 4 against 4 + 4"
    assert strategy.choose(ask(1, 7, 8), [first, second]) is second, "3 + 6 against 2 + 2"
    strategy.first_byte(ask(0, 1, 2, 3, 4), first)
    strategy.finished(ask(0, 1, 2, 3, 4), first, Outcome.OK)
    assert strategy.choose(ask(2, 1), [first, second]) is first, "0 + 1 against 3 + 3"


def test_the_oracle_knows_what_is_cached_and_what_waits() -> None:
    known = world()
    read(known, "i1", 1, 2, 3)
    strategy = Oracle(known)
    first, second = views(0, 0)
    request = ask(0, 1, 2, 3, 4)
    assert strategy.choose(request, [first, second]) is second
    long = TracedRequest(0.0, 900, 1, ())
    known.engines["i1"].submit(long, 0.0)
    for number in range(2):  # the second waits behind the first
        strategy.choose(RequestInfo.simulated(f"w{number}", "m", Prompt(900, (), 10)), [second])
        known.engines["i1"].submit(long, 0.0)
    assert strategy.choose(ask(9, 5), [first, second]) is first


def test_the_same_seed_makes_the_same_traffic_and_the_sample_is_it(tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl.gz"
    assert main(["trace", "chats", str(again), "--requests", "400", "--seed", "7"]) == 0
    assert again.read_bytes() == SAMPLE.read_bytes()
    assert len(read_trace(SAMPLE).requests) == 400


@pytest.mark.parametrize("kind", chats.KINDS)
def test_turns_contain_the_turns_before(kind: str) -> None:
    made = chats.make(chats.KINDS[kind], 300, seed=3)
    assert [one.arrival_s for one in made.requests] == sorted(one.arrival_s for one in made.requests)
    seen: set[int] = set()
    shared = 0
    for request in made.requests:
        assert len(request.blocks) == request.input_tokens // made.block_tokens
        known = [block in seen for block in request.blocks]
        assert known == sorted(known, reverse=True), "what is known is a leading part"
        shared += sum(known)
        seen.update(request.blocks)
    assert bool(shared) == (kind != "documents")


def test_a_matrix_becomes_tables(tmp_path: Path) -> None:
    out, page = tmp_path / "rows.json", tmp_path / "page.md"
    arguments = [
        "--strategy",
        "least_connections,prefix_aware,dynamo cost,oracle",
        "--instances",
        "2",
        "--loads",
        "0.7",
    ]
    sizes = ["--limit", "60", "--processes", "1", "--caches", '{"large": 900}']
    assert main(["matrix", "--trace", str(SAMPLE), "--title", "Sample", "--out", str(out), *arguments, *sizes]) == 0
    read_back = json.loads(out.read_text(encoding="utf-8"))
    assert [row["strategy"] for row in read_back["rows"]] == arguments[1].split(",")
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    assert main(["tables", str(out), "--write", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n")
    assert report(Matrix("Sample", read_back["rows"]), full=True) in text and "old" not in text
    assert "| p99 never worse than dynamo cost | 1 of 1 |" in text or "large, 2, 70%" in text


def test_the_load_is_measured_by_what_the_engines_can_do() -> None:
    requests = tuple(TracedRequest(n / 100, 1000, 50, ()) for n in range(5000))
    trace = Trace(requests, 512)
    one = matrix.capacity_rps(trace, matrix.Cell("", 800, 1, 1.0))
    assert matrix.capacity_rps(trace, matrix.Cell("", 800, 4, 1.0)) == pytest.approx(4 * one, rel=0.4)
