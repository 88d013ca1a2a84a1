# SPDX-License-Identifier: Apache-2.0
"""Errors in the shapes in which vLLM answers them: its own error object, and FastAPI's `detail`."""

from __future__ import annotations

import json
from typing import Any

SHUTTING_DOWN_MESSAGE = "cannot schedule new futures after shutdown"


class ApiError(Exception):
    """Ends a request with vLLM's error object."""

    def __init__(self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """Of Anthropic's API; what is wrong with the form of a request is said alike in both."""
        error = self.body["error"]
        if error["type"] == "Bad Request":
            return self.body
        return {"type": "error", "error": {"type": error["type"], "message": error["message"]}}


class DetailError(Exception):
    """Ends a request as FastAPI itself does: unknown route, wrong method."""

    def __init__(self, status: int, detail: str, *, allow: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.allow = allow
        self.body = {"detail": detail}


def internal_error(message: str) -> ApiError:
    return ApiError(500, message, kind="InternalServerError")


def bad_parameter(name: str, value: object, message: str) -> ApiError:
    return ApiError(400, f"{message} (parameter={name}, value={value})", param=name)


def invalid_body(kind: str, where: str, message: str, given: str, **more: Any) -> ApiError:
    """One of pydantic's validation errors, as vLLM words it."""
    problem = {"type": kind, "loc": where, "msg": message, "input": given, **more}
    return ApiError(400, f"1 validation error:\n  {problem}", kind="Bad Request", param=where)


def missing_field(name: str, body: dict[str, Any]) -> ApiError:
    return invalid_body("missing", f"body.{name}", "Field required", f"<dict of {len(body)} items>")


def stream_error_event(message: str) -> bytes:
    """The event inside a stream that had begun; unlike other events it is written with spaces."""
    error = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
