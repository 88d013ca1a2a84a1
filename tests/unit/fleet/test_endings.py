# SPDX-License-Identifier: Apache-2.0
"""Whoever reads why an engine ended finds the signal's name, and the words from before its death."""

import pytest

from vllm_gateway.fleet.endings import advice_on, reason_of, root_cause
from vllm_gateway.fleet.runtimes import Exit

TAIL = ("ValueError: harmless, an hour ago", "INFO: 200 OK")
OLD = ("torch.OutOfMemoryError: CUDA out of memory, of one request", "INFO: 200 OK")


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (Exit(3), "the engine ended with exit status 3"),
        (Exit(3, out_of_memory=True), "out of memory"),
        (Exit(-6, out_of_memory=True), "out of memory"),
        (Exit(-4), "SIGILL killed the engine"),
        (Exit(132), "SIGILL killed the engine"),
        (Exit(-9, out_of_memory=True), "SIGKILL killed the engine"),
        (Exit(137, short_of_memory=True), "the kernel killed the engine (SIGKILL)"),
        (Exit(255), "the engine ended with exit status 255"),
    ],
)
def test_the_reason(ended: Exit, reason: str) -> None:
    assert reason_of(ended).startswith(reason)


def test_operators_are_told_what_to_look_at() -> None:
    assert "processor" in advice_on(Exit(-4))
    assert "dmesg" in advice_on(Exit(137))
    assert not advice_on(Exit(1))
    tail = ("importlib.metadata.PackageNotFoundError: No package metadata was found for vllm",)
    assert "process.command" in advice_on(Exit(1, log_tail=tail))


def test_of_one_that_was_killed_an_error_among_its_last_lines_is_an_old_one() -> None:
    assert root_cause(TAIL, 1) == TAIL[0]
    assert root_cause(TAIL, -6) == TAIL[0]
    assert root_cause(TAIL, 137) == root_cause(TAIL, -4) == TAIL[1]
    assert root_cause((), -9) == ""
