# SPDX-License-Identifier: Apache-2.0
"""The last lines of an engine stay readable and bounded, whatever it prints."""

import asyncio

from tests.waiting import LIMIT_S
from vllm_gateway.fleet.runtimes.output import (
    MOST_ENDED,
    STARTED_AGAIN,
    Output,
    Outputs,
    clean_line,
    says_out_of_memory,
)
from vllm_gateway.telemetry.secrets import Secrets


def test_lines_arrive_whole_however_they_were_cut() -> None:
    tail = Output(Secrets())
    for byte in "eins\nzwei ü\r\ndrei".encode():
        tail.feed(bytes([byte]))
    assert tail.lines() == ("eins", "zwei ü", "drei")


def test_a_progress_bar_is_shown_in_its_last_state() -> None:
    tail = Output(Secrets())
    tail.feed(b"Loading:  0%|    |\rLoading: 50%|##  |\rLoading: 100%|####|\nready\n")
    assert tail.lines() == ("Loading: 100%|####|", "ready")


def test_colours_are_taken_out() -> None:
    assert clean_line("\x1b[1;36m(EngineCore pid=7)\x1b[0;0m up\x1b[K", Secrets()) == "(EngineCore pid=7) up"


def test_an_endless_line_stays_bounded() -> None:
    tail = Output(Secrets())
    for _ in range(100):
        tail.feed(b"x" * 10_000)
    (line,) = tail.lines()
    assert len(line) == 2003


def test_an_endless_progress_bar_shows_its_present_state() -> None:
    tail = Output(Secrets())
    for step in range(10_000):
        tail.feed(b"\rstep %d" % step)
    assert tail.lines() == ("step 9999",)


def test_only_the_last_lines_are_kept() -> None:
    tail = Output(Secrets(), kept_lines=3)
    tail.feed(b"".join(b"%d\n" % n for n in range(10)))
    assert tail.lines() == ("7", "8", "9")
    assert tail.lines(1) == ("9",)


def test_out_of_memory_is_recognised() -> None:
    assert says_out_of_memory(["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."])
    assert not says_out_of_memory(["INFO: memory profiling took 1 s"])


def test_what_several_engines_of_an_instance_wrote_stays_within_bounds() -> None:
    outputs = Outputs(Secrets())
    with outputs.of_engine("a", "m") as output:
        output.feed(b"one\ntwo")
        assert output.lines() == ("one", "two")
    assert (output.running, output.since(0)) == (False, ["one", "two"])
    with outputs.of_engine("a", "m") as again:
        assert again is output
        output.feed(b"three\n")
        assert output.lines() == ("three",), "of the engine at hand"
        assert output.since(0) == ["one", "two", STARTED_AGAIN, "three"]
        output.feed(b"x" * 1999 + b"\n")
        for _ in range(1000):
            output.feed(b"y" * 1999 + b"\n")
        assert (output.end, output.kept, output.first) == (1005, 254, 751)
        assert len("".join(output.since(output.first))) < 512 * 1024
    with outputs.of_engine("a", "another model") as other:
        assert other is not output


def test_of_those_that_ended_the_latest_are_kept_and_all_that_run() -> None:
    outputs = Outputs(Secrets())
    with outputs.of_engine("runs", "m"):
        for number in range(MOST_ENDED + 5):
            with outputs.of_engine(f"i{number}", "m"):
                pass
        names = {name for name, _ in outputs.items()}
        assert names == {"runs", *(f"i{number}" for number in range(5, MOST_ENDED + 5))}


def test_one_that_ended_late_does_not_end_the_next() -> None:
    output = Output(Secrets())
    first = output.start()
    second = output.start()
    output.finish(first)
    assert output.running
    output.finish(second)
    assert not output.running


async def test_who_waits_for_news_hears_of_lines_and_of_the_end() -> None:
    outputs = Outputs(Secrets())
    with outputs.of_engine("a", "m") as output:
        waits = asyncio.create_task(output.news())
        await asyncio.sleep(0)
        output.feed(b"line\n")
        await asyncio.wait_for(waits, LIMIT_S)
        waits = asyncio.create_task(output.news())
        await asyncio.sleep(0)
        outputs.close()
        await asyncio.wait_for(waits, LIMIT_S)
        waits = asyncio.create_task(output.news())
        await asyncio.sleep(0)
    await asyncio.wait_for(waits, LIMIT_S)
