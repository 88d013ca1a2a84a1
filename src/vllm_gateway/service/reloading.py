# SPDX-License-Identifier: Apache-2.0
"""Takes a changed configuration while the gateway runs: all of it, or, if anything in it is wrong, nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from vllm_gateway.allocator.probe import ProbeError
from vllm_gateway.configuration.loading import ConfigError
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.files.aside import aside
from vllm_gateway.fleet.runtimes import RuntimeDown
from vllm_gateway.scheduling import StrategyError
from vllm_gateway.telemetry import events

WATCH_S = 0.5
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
