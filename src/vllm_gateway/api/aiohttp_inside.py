# SPDX-License-Identifier: Apache-2.0
"""What is used of aiohttp's inside, which it may change at any release: that it is missing is said at the start."""

import inspect
from collections.abc import Mapping

import aiohttp
from aiohttp import web

USED: Mapping[type, frozenset[str]] = {
    web.RequestHandler: frozenset({"_close", "_force_close", "_messages", "_reading_paused"}),
    web.StreamResponse: frozenset({"_keep_alive"}),
    web.Server: frozenset({"_connections", "_kwargs", "_loop"}),
}
OPTIONS = frozenset({"max_line_size", "max_field_size", "max_headers"})
"""Of a `web.RequestHandler`."""


def check() -> None:
    """Raises ImportError."""
    missing = [f"{owner.__name__}.{name}" for owner, names in USED.items() for name in sorted(names - _inside(owner))]
    options = OPTIONS - inspect.signature(web.RequestHandler).parameters.keys()
    if missing := missing + sorted(options):
        raise ImportError(
            f"aiohttp {aiohttp.__version__} has no {', '.join(missing)}, which the gateway needs: install a version "
            "that pyproject.toml allows, best the one of requirements-dev.lock"
        )


def _inside(owner: type) -> set[str]:
    """Its methods, and its slots, or what its `__init__` sets."""
    made = () if "__slots__" in vars(owner) else owner.__init__.__code__.co_names  # type: ignore[misc]  # of a class
    return {*dir(owner), *made}
