# SPDX-License-Identifier: Apache-2.0
"""Takes a changed configuration while the gateway runs: all of it, or, if anything in it is wrong, nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from vllm_gateway.allocator.probe import ProbeError
from vllm_gateway.configuration.loading import ConfigError
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.files.aside import aside
from vllm_gateway.fleet.runtimes import RuntimeDown
from vllm_gateway.scheduling import StrategyError
from vllm_gateway.telemetry import events

Stamp = tuple[int, ...] | None

WATCH_S = 0.5  # a change counts at the second look that finds it
_GONE_LOOKS = 5  # and what is missing or empty, for it may be written at this moment, at the fifth
# What is built once: the listening socket, the runtime, the GPUs, the log and other files.
FIXED = (
    "server.host",
    "server.port",
    "server.socket",
    "server.socket_mode",
    "server.max_body_mib",
    "server.control_socket",
    "runtime",
    "docker.container_prefix",
    "gpus.source",
    "gpus.devices",
    "gpus.only",
    "gpus.without",
    "log.level",
    "log.format",
    "memory_footprint_file",
    "state_dir",
    "record_trace",
    "reload",
)


def keep_fixed(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """`new` with what cannot change at run time taken from `old`, and the names of what would have."""
    differing = []
    for name in FIXED:
        section, _, key = name.rpartition(".")
        was_in, wanted = (getattr(settings, section) if section else settings for settings in (old, new))
        if getattr(was_in, key) != getattr(wanted, key):
            alias = type(was_in).model_fields[key].alias or key
            differing.append(f"{section}.{alias}" if section else alias)
            kept = wanted.model_copy(update={key: getattr(was_in, key)})
            new = new.model_copy(update={section: kept}) if section else kept
    return new, differing


class Reloader:
    """`load` reads the settings anew, given those that count, and `apply` makes them count, all or none of them."""

    def __init__(
        self,
        current: Settings,
        load: Callable[[Settings], Settings],
        apply: Callable[[Settings], Awaitable[None]],
        emit: Callable[..., None],
        asked: asyncio.Event,
    ) -> None:
        """`asked`: when it is set, a reload is asked for."""
        self._current = current
        self._load = load
        self._apply = apply
        self._emit: Callable[..., None] = emit
        self._asked = asked

    async def follow(self) -> None:
        """Reloads when that is asked for, once for all who asked meanwhile."""
        await self._asked.wait()
        self._asked.clear()
        await self.reload()

    async def reload(self) -> None:
        try:
            settings, differing = keep_fixed(self._current, await aside(partial(self._load, self._current)))
            await self._apply(settings)
        except ConfigError as error:
            self._emit(events.CONFIG_RELOAD_FAILED, problems=list(map(str, error.problems)))
            return
        except (StrategyError, ProbeError, RuntimeDown, TimeoutError) as error:
            self._emit(events.CONFIG_RELOAD_FAILED, problems=[str(error)])
            return
        except Exception as error:
            self._emit(events.CONFIG_RELOAD_FAILED, problems=[repr(error)])
            raise
        self._current = settings
        if differing:
            self._emit(events.CONFIG_NEEDS_RESTART, settings=differing)
        self._emit(events.CONFIG_RELOADED, models=list(settings.models))


class Watch:
    """Of files that may be written in place, replaced, or missing in between: a change counts once all are at rest.

    Make one before the files are read: a change while they are read is one.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._told = self._before = self._stamps()
        self._looks = 0  # that have found the same

    async def look(self) -> bool:
        """Whether there is a change to tell of. Of a drive that does not answer there is one look, until it does."""
        now = await aside(self._stamps, None)
        self._looks = self._looks + 1 if now == self._before else 1
        self._before = now
        if now == self._told or self._looks < (_GONE_LOOKS if None in now else 2):
            return False
        self._told = now
        return True

    def _stamps(self) -> tuple[Stamp, ...]:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> Stamp:
    """What differs once a file was written, replaced or given to others, behind links too; None: nothing is in it."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not status.st_size:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode, status.st_uid, status.st_gid
