# SPDX-License-Identifier: Apache-2.0
"""What can be made to go wrong, by name: at start from `SIM_FAULTS`, at run time by `POST /sim/faults`.

A fault is written `name`, `name=value` or `name=value*times`; without `times` it lasts until it is lifted.
`SIM_FAULTS="status_503*2,close_after_tokens=5"`: two requests get 503, and every stream is cut after five tokens.
`POST /sim/faults` takes a JSON list of the same texts, or an object of name to value; it replaces all faults.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

START_FAULTS = {
    "crash_at_start": "exit before anything is loaded; value: exit code (1)",
    "crash_during_load": "exit with status 1 while loading; value: seconds after the start (0)",
    "value_error_at_start": "the engine core raises a ValueError, exit status 1",
    "hang_during_load": "load for ever; the port never opens",
}
HTTP_FAULTS = {
    "never_healthy": "the port is open and /health never answers",
    "health_503": "the engine core is dead: /health 503, generations 500",
    "core_hangs": "the engine core stands still: generations are taken and not answered, no counter moves, /health 200",
    "silent": "connections are accepted and nothing is answered",
    "refuse_connections": "new connections are refused; value: for how many seconds (0: for ever)",
    "full_backlog": "new connections are neither accepted nor refused",
    "status_500": "generations get 500",
    "status_503": "generations get 503",
    "sleep_500": "/sleep gets 500, and the engine stays awake",
    "wake_500": "/wake_up gets 500, and the engine stays asleep",
    "sleep_hangs": "/sleep and /wake_up never answer",
    "shutting_down_500": "generations get 500 `cannot schedule new futures after shutdown`",
    "garbage": "generations get bytes that are not HTTP, and the connection is closed",
    "cut_head": "generations get half a head, and the connection is closed",
    "dies_of_poison": "the process exits with status 1 at a request that says `poison`; value: seconds later (0)",
    "core_dies_of_poison": "the engine core dies of such a request, and soon the process; value: seconds later (0)",
}
STREAM_FAULTS = {
    "exit_after_tokens": "the process exits with status 1",
    "silent_after_tokens": "the stream says no more; the connection stays open",
    "done_after_tokens": "the stream ends as it should, but without a reason",
    "error_after_tokens": "an error event, and the end; of /v1/responses the connection is closed",
    "close_after_tokens": "the connection is closed",
    "reset_after_tokens": "the connection is reset",
    "out_of_memory_after_tokens": "the engine core dies of CUDA out of memory, and soon the process",
}
"""Each happens once the value (0) of tokens of a reply has been sent; where nothing is streamed, instead of a reply."""

END_FAULTS = {"cut_before_the_end": "the connection is closed before the last event of a stream"}

HOLD_FAULTS = {
    "opens_early": "streams begin with what comes before the first token, as soon as the request is there",
    "hold_after_tokens": "replies stop at this many tokens (0), or before their end, and go on when this is lifted",
}
STOP_FAULTS = {"ignore_sigterm": "SIGTERM does nothing"}

KINDS = START_FAULTS | HTTP_FAULTS | STREAM_FAULTS | END_FAULTS | HOLD_FAULTS | STOP_FAULTS


class UnknownFaultError(ValueError):
    pass


@dataclass(slots=True)
class Fault:
    name: str
    value: float | None = None
    times: int | None = None

    @classmethod
    def parse(cls, text: str) -> Fault:
        rest, _, times = text.strip().partition("*")
        name, _, value = rest.partition("=")
        name = name.strip().replace("-", "_")
        if name not in KINDS:
            raise UnknownFaultError(f"no fault named {name!r}; there are: {', '.join(KINDS)}")
        return cls(name, float(value) if value else None, int(times) if times else None)

    def __str__(self) -> str:
        value = "" if self.value is None else f"={self.value:g}"
        return self.name + value + ("" if self.times is None else f"*{self.times}")


class Faults:
    """The faults that are set now."""

    def __init__(self, text: str = "") -> None:
        self._faults: dict[str, Fault] = {}
        self._changed = asyncio.Event()
        self.replace(part for part in text.split(",") if part.strip())

    def replace(self, texts: Iterable[str]) -> None:
        """Sets these and lifts all others; raises UnknownFaultError or ValueError and changes nothing."""
        parsed = [Fault.parse(text) for text in texts]
        self._faults = {fault.name: fault for fault in parsed}
        self._changed.set()
        self._changed = asyncio.Event()

    def texts(self) -> list[str]:
        return [str(fault) for fault in self._faults.values()]

    def is_set(self, name: str) -> bool:
        return name in self._faults

    def value(self, name: str, default: float = 0.0) -> float | None:
        """The value of a fault that is set (`default` where it has none), else None."""
        fault = self._faults.get(name)
        if fault is None:
            return None
        return default if fault.value is None else fault.value

    async def until_lifted(self, name: str) -> None:
        while self.is_set(name):
            await self._changed.wait()

    def use(self, name: str) -> bool:
        """Is it set? Counts as one of its times."""
        fault = self._faults.get(name)
        if fault is None:
            return False
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                del self._faults[name]
        return True

    def use_stream_fault(self) -> tuple[str, int] | None:
        """(name, tokens) of the fault that the next reply will meet."""
        for name in STREAM_FAULTS:
            tokens = self.value(name)
            if tokens is not None and self.use(name):
                return name, int(tokens)
        return None
