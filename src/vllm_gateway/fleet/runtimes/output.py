# SPDX-License-Identifier: Apache-2.0
"""What engines write, from their first line on and in bounded memory: to be read while they run, and when they died."""

import asyncio
import codecs
import itertools
import re
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from vllm_gateway.telemetry.secrets import Secrets

KEPT_LINES = 200  # when it ended: what says why
MOST_LINES = 4000  # of an instance
_MOST_CHARACTERS = 512 * 1024
_LINE_COSTS = 64  # beside its characters
MOST_ENDED = 32  # instances that do not run any more
STARTED_AGAIN = "--- it ended, and was started again ---"
_LONGEST_LINE = 2000
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_OUT_OF_MEMORY = re.compile(r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory")


def clean_line(line: str, secrets: Secrets) -> str:
    """The line as a terminal would show it: without colours, a progress bar in its last state, cut if it is long.

    Whatever is a secret is masked before it is cut in two.
    """
    shown = _ANSI.sub("", line.rstrip("\r\n").rpartition("\r")[2]).rstrip()
    shown = secrets.mask(shown[: 2 * _LONGEST_LINE], is_cut=len(shown) >= 2 * _LONGEST_LINE)
    return shown if len(shown) <= _LONGEST_LINE else shown[:_LONGEST_LINE] + "..."


def says_out_of_memory(lines: Sequence[str]) -> bool:
    """Whether the engine ended for want of GPU memory, as PyTorch and CUDA word it."""
    return any(_OUT_OF_MEMORY.search(line) for line in lines)


class Output:
    """What the engines of one instance write, one engine after the other: pieces as they come in, lines out.

    Whoever reads along has a place of its own in the lines that are kept: it costs nothing, and may fall behind.
    """

    def __init__(self, secrets: Secrets, model: str = "", kept_lines: int = MOST_LINES) -> None:
        self._secrets = secrets
        self.model = model
        self._kept_lines = kept_lines
        self._lines: deque[str] = deque()
        self._cost = 0
        self.end = 0
        """The number of the next line; those before it are counted from 0, kept or not."""
        self._begin = 0  # the number of the first line of the engine at hand
        self._engines = 0
        self.running = False
        self._waiting: list[asyncio.Future[None]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._partial = ""

    def start(self) -> int:
        """Of the next engine, which the number stands for."""
        if self.end:
            self._keep([STARTED_AGAIN])
        self._decoder.reset()
        self._partial = ""
        self._begin = self.end
        self._engines += 1
        self.running = True
        return self._engines

    def finish(self, engine: int) -> None:
        if engine == self._engines:
            self.running = False
            unfinished, self._partial = self.unfinished, ""
            self._keep(unfinished)

    def feed(self, data: bytes) -> None:
        *complete, partial = (self._partial + self._decoder.decode(data)).split("\n")
        if len(partial) > _LONGEST_LINE:
            overwritten = partial.rfind("\r", 0, len(partial) - 1)
            partial = partial[overwritten + 1 :][: 2 * _LONGEST_LINE]
        self._partial = partial
        if complete:
            self._keep([shown for line in complete if (shown := clean_line(line, self._secrets))])

    def lines(self, last: int = KEPT_LINES) -> tuple[str, ...]:
        """The last ones of the engine at hand, an unfinished one included."""
        return tuple([*self.since(max(self._begin, self.first)), *self.unfinished][-last:])

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The line that an engine is at, if there is one."""
        shown = clean_line(self._partial, self._secrets)
        return (shown,) if shown else ()

    @property
    def kept(self) -> int:
        """How many lines."""
        return len(self._lines)

    @property
    def first(self) -> int:
        """The number of the first line that is still kept."""
        return self.end - len(self._lines)

    def since(self, number: int) -> list[str]:
        """All lines from that one on, which is still kept."""
        return list(itertools.islice(self._lines, number - self.first, None))

    async def news(self) -> None:
        """Returns when there may be more lines, or none will come."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        finally:
            with suppress(ValueError):
                self._waiting.remove(future)

    def tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def _keep(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._lines.append(line)
            self._cost += len(line) + _LINE_COSTS
            while len(self._lines) > self._kept_lines or self._cost > _MOST_CHARACTERS:
                self._cost -= len(self._lines.popleft()) + _LINE_COSTS
        self.end += len(lines)
        self.tell()


class Outputs:
    """Of all instances that run, by their names, and of some that have ended."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._all: OrderedDict[str, Output] = OrderedDict()  # those that ended last are the last
        self.closed = False
        """Nobody is to wait for more lines."""

    @contextmanager
    def of_engine(self, instance: str, model: str) -> Iterator[Output]:
        """To feed with what an engine writes, until its end."""
        output = self._all.get(instance)
        if output is None or output.model != model:
            output = self._all[instance] = Output(self._secrets, model)
        engine = output.start()
        try:
            yield output
        finally:
            output.finish(engine)
            if self._all.get(instance) is output:
                self._all.move_to_end(instance)
            self._forget_the_oldest()

    def _forget_the_oldest(self) -> None:
        ended = [name for name, output in self._all.items() if not output.running]
        for name in ended[:-MOST_ENDED]:
            del self._all[name]

    def get(self, instance: str) -> Output | None:
        return self._all.get(instance)

    def items(self) -> list[tuple[str, Output]]:
        """By the names of instances."""
        return sorted(self._all.items())

    def close(self) -> None:
        self.closed = True
        for output in self._all.values():
            output.tell()
