# SPDX-License-Identifier: Apache-2.0
"""Which paths, by which methods, are carried to engines: what engines have beside them stays out of clients' reach."""

import re
from collections.abc import Iterable

from aiohttp import web

_PARAMETER = re.compile(r"\\\{[a-z_]+\\\}")
_SEGMENT = r"(?!\.+(?:/|\Z))[A-Za-z0-9._~-]{1,128}"
_NONE = frozenset[str]()


class CarriedPaths:
    """Those that clients' tasks need. In a path `{name}` stands for one segment, whatever it is."""

    def __init__(self, carried: Iterable[tuple[str, str]]) -> None:
        """`carried`: methods and paths."""
        exact: dict[str, set[str]] = {}
        for method, path in carried:
            exact.setdefault(path, set()).add(method)
        self._exact = {path: frozenset(methods) for path, methods in exact.items()}
        self._patterns = [
            (re.compile(_PARAMETER.sub(lambda _: _SEGMENT, re.escape(path))), methods)
            for path, methods in self._exact.items()
            if "{" in path
        ]
        self.posts = frozenset(path for path, methods in self._exact.items() if "POST" in methods and "{" not in path)
        """Paths for what clients nearly always send."""

    def methods(self, path: str) -> frozenset[str]:
        """By which it is carried; none: it is not. `path`: as `origin_form` gives it."""
        found = self._exact.get(path)
        if found is not None:
            return found
        return next((methods for pattern, methods in self._patterns if pattern.fullmatch(path)), _NONE)


def origin_form(request: web.BaseRequest) -> tuple[str, str]:
    """Path and query as they go on, whatever authority or fragment the client has put around them.

    A slash at the end of the path is left out, as engines would ask for with a redirect.
    """
    url = request.rel_url
    path = url.raw_path
    if len(path) > 1 and path.endswith("/"):
        path = path[:-1]
    return path, f"?{url.raw_query_string}" if url.raw_query_string else ""
