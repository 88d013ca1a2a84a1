# SPDX-License-Identifier: Apache-2.0
"""What holds for the requests of one model: the limits of their waiting, and what becomes of a stream in trouble."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.relay import Limits
from vllm_gateway.streams import MAX_EVENT_BYTES, Resume


@dataclass(frozen=True, slots=True)
class Terms:
    limits: Limits = field(default_factory=Limits)
    request_s: float | None = None
    """For the whole request."""
    resume: Resume = Resume.EXACT
    keepalive: bool = False
    """A stream that waits for an instance is kept alive by comments."""
    max_event_bytes: int = MAX_EVENT_BYTES
    """Of a stream; a longer one ends it."""
    echo_aliases: bool = True
    """Replies to a request by an alias name the alias."""
    media_types: Mapping[str, str] = field(default_factory=dict)
    """By path, where its engines are known to take one type of body alone."""


def terms_of(settings: Settings, media_types: Mapping[str, str]) -> dict[str, Terms]:
    """By model. `media_types`: what the engines that the gateway starts take; others may be engines of any kind."""
    return {model: _terms_of(settings, model, media_types) for model in settings.models}


def _terms_of(settings: Settings, model: str, media_types: Mapping[str, str]) -> Terms:
    of_model, timeouts = settings.models[model], settings.timeouts
    first_byte_s = of_model.first_byte_timeout_s
    limits = Limits(
        connect_s=timeouts.connect_s,
        first_byte_s=(timeouts.first_byte_s if first_byte_s is None else first_byte_s) or None,
        idle_s=timeouts.idle_s or None,
        client_stall_s=timeouts.client_s or None,
    )
    return Terms(
        limits,
        request_s=timeouts.request_s or None,
        resume=Resume(of_model.resume or settings.resume),
        keepalive=(of_model.cold_start or settings.cold_start) == "keepalive",
        max_event_bytes=settings.server.max_event_mib << 20,
        echo_aliases=settings.server.echo_aliases,
        media_types={} if of_model.endpoints else media_types,
    )


def shortest(terms: Mapping[str, Terms]) -> Limits:
    """Limits that are as short as any model's: a relay looks at waiting times as often as the shortest one asks for."""
    limits = [one.limits for one in terms.values()]
    if not limits:
        return Limits()
    return replace(limits[0], first_byte_s=min((one.first_byte_s for one in limits if one.first_byte_s), default=None))
