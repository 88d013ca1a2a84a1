# SPDX-License-Identifier: Apache-2.0
"""The pulls that are under way: one an image, whoever needs it, for as long as somebody does."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.lives import RUNTIME_BACK_S, RUNTIME_POLL_S
from vllm_gateway.fleet.runtimes import Progress, Runtime, RuntimeDown, StartError
from vllm_gateway.fleet.tasks import Tasks

REASON = "its image could not be fetched"


@dataclass(slots=True)
class Pull:
    began: float
    moved_at: float
    models: set[str] = field(default_factory=set)
    progress: Progress | None = None
    task: asyncio.Task[None] | None = None


class Pulls:
    def __init__(
        self, runtime: Runtime, tasks: Tasks, hear: Callable[[e.Event], None], mask: Callable[[str], str]
    ) -> None:
        """`mask` takes the secrets out of what others say."""
        self._runtime = runtime
        self._tasks = tasks
        self._hear = hear
        self._mask = mask
        self._pulls: dict[str, Pull] = {}

    def of(self, image: str) -> Pull | None:
        return self._pulls.get(image)

    def fetch(self, model: str, image: str) -> None:
        pull = self._pulls.get(image)
        if pull is None:
            now = _now()
            pull = self._pulls[image] = Pull(now, now)
            pull.task = self._tasks.spawn(self._fetch(image, pull))
        pull.models.add(model)

    def leave(self, model: str, image: str) -> None:
        if pull := self._pulls.get(image):
            pull.models.discard(model)
            if not pull.models:
                self._end(image)

    def end(self) -> None:
        for image in list(self._pulls):
            self._end(image)

    def _end(self, image: str) -> None:
        """It tells nobody any more."""
        pull = self._pulls.pop(image)
        if pull.task is not None:
            pull.task.cancel()

    async def _fetch(self, image: str, pull: Pull) -> None:
        problem: Exception | None = None
        try:
            await self._fetch_soon(image, pull)
        except Exception as error:
            problem = error
        del self._pulls[image]
        for model in sorted(pull.models):
            if problem is None:
                self._hear(e.ImageFetched(model, image))
            else:
                self._hear(e.ImageNotFetched(model, image, REASON, self._mask(str(problem))))
        if problem is not None and not isinstance(problem, StartError | RuntimeDown):
            raise problem  # nobody foresaw it

    async def _fetch_soon(self, image: str, pull: Pull) -> None:
        """A runtime that is only being restarted costs a delay. Raises StartError, RuntimeDown."""

        def told(progress: Progress) -> None:
            pull.moved_at, pull.progress = _now(), progress

        while True:
            try:
                return await self._runtime.fetch(image, told)
            except RuntimeDown:
                if _now() - pull.moved_at > RUNTIME_BACK_S:
                    raise
            await asyncio.sleep(RUNTIME_POLL_S)


def _now() -> float:
    return asyncio.get_running_loop().time()
