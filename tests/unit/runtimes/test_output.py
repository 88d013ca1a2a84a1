# SPDX-License-Identifier: Apache-2.0
"""The last lines of an engine stay readable and bounded, whatever it prints."""

from vllm_gateway.fleet.runtimes.output import OutputTail, clean_line, says_out_of_memory
from vllm_gateway.telemetry.secrets import Secrets


def test_lines_arrive_whole_however_they_were_cut() -> None:
    tail = OutputTail(Secrets())
    for byte in "eins\nzwei ü\r\ndrei".encode():
        tail.feed(bytes([byte]))
    assert tail.lines() == ("eins", "zwei ü", "drei")


def test_a_progress_bar_is_shown_in_its_last_state() -> None:
    tail = OutputTail(Secrets())
    tail.feed(b"Loading:  0%|    |\rLoading: 50%|##  |\rLoading: 100%|####|\nready\n")
    assert tail.lines() == ("Loading: 100%|####|", "ready")


def test_colours_are_taken_out() -> None:
    assert clean_line("\x1b[1;36m(EngineCore pid=7)\x1b[0;0m up\x1b[K", Secrets()) == "(EngineCore pid=7) up"


def test_an_endless_line_stays_bounded() -> None:
    tail = OutputTail(Secrets())
    for _ in range(100):
        tail.feed(b"x" * 10_000)
    (line,) = tail.lines()
    assert len(line) == 2003


def test_an_endless_progress_bar_shows_its_present_state() -> None:
    tail = OutputTail(Secrets())
    for step in range(10_000):
        tail.feed(b"\rstep %d" % step)
    assert tail.lines() == ("step 9999",)


def test_only_the_last_lines_are_kept() -> None:
    tail = OutputTail(Secrets(), kept_lines=3)
    tail.feed(b"".join(b"%d\n" % n for n in range(10)))
    assert tail.lines() == ("7", "8", "9")
    assert tail.lines(1) == ("9",)


def test_out_of_memory_is_recognised() -> None:
    assert says_out_of_memory(["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."])
    assert not says_out_of_memory(["INFO: memory profiling took 1 s"])
