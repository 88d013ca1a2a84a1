# SPDX-License-Identifier: Apache-2.0
"""The commands `status` and `retry`: ask a running gateway, and say who answers if it is none."""

import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from vllm_gateway.cli_status import table

_TIMEOUT_S = 10
_ELSEWHERE = "Name another address with --url."


class NoAnswer(Exception):
    """The text says why, and what to do."""


@dataclass(frozen=True)
class Address:
    """Of a gateway, with the key that it may ask for."""

    url: str
    api_key: str | None

    def ask(self, method: str, path: str, expected: str) -> dict[str, Any]:
        """The answer, which holds what is `expected`. Raises NoAnswer."""
        base = (self.url if "://" in self.url else f"http://{self.url}").rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            request = urllib.request.Request(base + path, headers=headers, method=method)  # noqa: S310
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - the operator's own
                page = json.load(reply)
        except urllib.error.HTTPError as error:
            raise NoAnswer(_refusal(base, error)) from None
        except (OSError, HTTPException) as error:
            raise NoAnswer(f"No gateway answers at {base}: {getattr(error, 'reason', error)}. {_ELSEWHERE}") from None
        except ValueError as error:
            raise NoAnswer(f"What answers at {base} is not this gateway: {error}. {_ELSEWHERE}") from None
        if not isinstance(page, dict) or expected not in page:
            raise NoAnswer(f"What answers at {base} is not this gateway. {_ELSEWHERE}")
        return page


def _refusal(base: str, error: urllib.error.HTTPError) -> str:
    if error.code == HTTPStatus.UNAUTHORIZED:
        return f"{base} asks for one of its API keys: --api-key, or VLLM_GATEWAY_API_KEY."
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, LookupError, TypeError, OSError):
        return f"What answers at {base} is not this gateway (HTTP {error.code}). {_ELSEWHERE}"


def status(address: Address, *, as_json: bool) -> int:
    """Returns the exit status, as `retry` does."""
    try:
        page = address.ask("GET", "/gateway/status", "active_containers_by_name")
    except NoAnswer as error:
        print(f"vllm-gateway status: {error}", file=sys.stderr)
        return 1
    print(json.dumps(page, indent=2) if as_json else table(page))
    return 0


def retry(address: Address, model: str) -> int:
    try:
        found = address.ask("POST", f"/gateway/models/{quote(model)}/retry", "running")
    except NoAnswer as error:
        print(f"vllm-gateway retry: {error}", file=sys.stderr)
        return 1
    print(f"{model}: {found['state']}, {found['running']} of {found['wanted']} running")
    return 0
