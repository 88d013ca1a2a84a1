# SPDX-License-Identifier: Apache-2.0
"""The public types of the Scheduler interface: all that a strategy sees."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from vllm_gateway.bodies.outline import Outline
from vllm_gateway.routing import Address, EngineMetrics
from vllm_gateway.scheduling.prompt import Body, Prompt, body_of, prompt_of, read_body

TYPICAL_OUTPUT_TOKENS = 256  # max_tokens is a limit, seldom what comes
METRICS_MAX_AGE_S = 5.0
_LONGEST_NUMBER = 18  # digits


@dataclass(slots=True, eq=False)
class InstanceView:
    """A ready instance below its limit. Strategies read it, and never change it."""

    instance_id: str
    name: str
    model: str
    address: Address
    max_in_flight: int
    weight: float = 1.0
    ready_since: float = 0.0  # loop time
    in_flight: int = 0
    total: int = 0
    failures: int = 0
    last_used: float | None = None
    answered_at: float | None = None  # loop time of the last whole reply that took an engine's work
    metrics: EngineMetrics | None = None  # the latest there were; kept only if a strategy says `wants_metrics = True`
    own: int = 0  # of those in flight: which have their places by this view
    elsewhere: int = 0  # of those in flight: another gateway's
    again: "InstanceView | None" = None  # the same engine, since it came back to the table while these went on

    def ended(self) -> None:
        """One less of its own: it ran on the engine, under whatever name that is listed."""
        self.own -= 1
        here: InstanceView | None = self
        while here is not None:
            here.in_flight -= 1
            here = here.again

    def latest(self) -> "InstanceView":
        """What its engine is listed as now, or was last."""
        return self if self.again is None else self.again.latest()

    def fresh_metrics(self, now: float) -> EngineMetrics | None:
        """None where the engine has not been heard of for a while."""
        metrics = self.metrics
        return metrics if metrics and now - metrics.at <= METRICS_MAX_AGE_S else None


@dataclass(slots=True, eq=False)
class RequestInfo:
    """One request: what a strategy may decide by. What lies in the body is read when it is first asked for."""

    request_id: str
    model: str
    path: str
    stream: bool
    body: bytes | bytearray
    raw_headers: Sequence[tuple[bytes, bytes]] = ()
    client: str = ""
    """Who asks: a digest of the API key where keys are set, else the address that the connection comes from."""

    _prompt: Prompt | None = field(default=None, repr=False, kw_only=True)  # known without a body: a simulated request
    _fields: Body | None = field(default=None, repr=False, init=False)
    outline: Outline | None = field(default=None, repr=False, kw_only=True)
    """Of a large body, whose parts have been found already."""

    def header(self, name: str) -> str | None:
        """The value of the first header of that name, in any case; None if there is none."""
        wanted = name.lower().encode("latin-1")
        for raw_name, value in self.raw_headers:
            if len(raw_name) == len(wanted) and raw_name.lower() == wanted:
                return value.decode("utf-8", "surrogateescape")
        return None

    @classmethod
    def simulated(cls, request_id: str, model: str, prompt: Prompt) -> "RequestInfo":
        """A request of which only the prompt's shape is known, as in a recorded trace."""
        return cls(request_id, model, "/v1/chat/completions", True, b"", _prompt=prompt)

    @property
    def prompt(self) -> Prompt:
        if self._prompt is None:
            self._prompt = prompt_of(self.fields, self.outline)
        return self._prompt

    @property
    def fields(self) -> Body:
        if self._fields is None:
            self._fields = read_body(self.body) if self.outline is None else body_of(self.outline)
        return self._fields

    @property
    def output_tokens(self) -> int:
        """An estimate of how many tokens the reply will have."""
        limit = bytes(self.fields.max_completion_tokens or self.fields.max_tokens)
        known = limit.isdigit() and len(limit) <= _LONGEST_NUMBER
        return min(int(limit), TYPICAL_OUTPUT_TOKENS) if known else TYPICAL_OUTPUT_TOKENS


class Outcome(Enum):
    OK = "ok"
    CLIENT_ERROR = "client_error"  # 4xx from the engine
    SERVER_ERROR = "server_error"  # 5xx from the engine
    UNREACHABLE = "unreachable"  # no reply began
    BROKEN = "broken"  # the reply was cut
    CLIENT_GONE = "client_gone"


class Scheduler(Protocol):
    """Chooses the instance for each request of ONE model. Called on the event loop: no I/O, no await.

    `choose` is all that is needed. A strategy may also have any of these:

    `first_byte(request, instance)`: the first byte of the reply's content came, so the prompt has been read;
    `finished(request, instance, outcome)`: called once for each request it placed, at the end;
    `departed(instance_id)`: the instance left; one that comes back is met as new;
    `scores(request, instances)`: see `Scoring`;
    `wants_metrics = True`: the fleet reads the engines' own metrics into `InstanceView.metrics`.

    Its options in the configuration are keyword arguments of its class. Two are given by the gateway if the class takes
    them: `clock`, the loop's time in seconds, and `random`, a generator. Use them, so that a trace can be replayed.
    """

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        """`instances` is never empty, holds ready instances below their limit, in a stable order."""
