# SPDX-License-Identifier: Apache-2.0
"""What one value of the configuration may be: kinds of texts and numbers, with what is said of others."""

import re
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme == "http" and bool(parts.hostname) and bool(parts.port)
    except ValueError:
        good = False
    if not good or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("an endpoint must be of the form http://host:port")
    return url.rstrip("/")


def _listen_host(host: str) -> str:
    try:
        if host:  # else it is every address
            ip_address(host)
    except ValueError:
        if re.fullmatch(r"\w(?:[\w.-]*[\w.])?", host) is None:
            raise ValueError("must be an address of this machine or a name, as in 127.0.0.1, :: or localhost") from None
    return host


def _variable(name: str) -> str:
    if not name or "=" in name:
        raise ValueError("the name of a variable must not be empty, and has no = in it")
    return name


def _repository(name: str) -> str:
    if name.startswith("-"):
        raise ValueError("a repository or a path does not begin with -")
    return name


def _host_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?", name) is None:
        raise ValueError("a name of this machine has neither scheme nor port, as in llm.example.com")
    return name


def _origin(text: str) -> str:
    if text != ANY_ORIGIN and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#@]+", text) is None:
        raise ValueError("an origin has a scheme and no path: https://chat.example.com; '*': pages of all sites")
    return text


def _proxy(text: str) -> str:
    if text != "unix":
        ip_network(text)
    return text


def _printable(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError("the name of a model must not be empty, and its characters printable")
    return name


def _plain_file(name: str) -> str:
    if name.endswith((".gz", ".csv")):
        raise ValueError("plain JSON lines are written: name it .jsonl")
    return name


def _volume(text: str) -> str:
    if re.fullmatch(r"[^:]+:/[^:]+(:r[ow])?", text) is None:
        raise ValueError("a volume must be of the form /on/the/host:/in/the/engine, :ro at its end for read only")
    return text


def _carried_path(text: str) -> str:
    if re.fullmatch(r"((GET|POST|PUT|PATCH|DELETE) )?(/([A-Za-z0-9._~-]+|\{[a-z_]+\}))+", text) is None:
        raise ValueError("a path must be of the form /path or METHOD /path; {name} stands for one segment of it")
    return text


def _strategy(value: object) -> str | dict[str, Any]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return value
    raise ValueError("name a strategy, or give a mapping of its `name` and its options")


ANY_ORIGIN = "*"
_STRATEGY_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
    ]
}
Strategy = Annotated[str | dict[str, Any], PlainValidator(_strategy), WithJsonSchema(_STRATEGY_SCHEMA)]
MOST = 10**9
"""No number is larger: 30 years, or 900 TiB. Sums of what is within it can be counted, timed and logged."""
Count = Annotated[int, Field(le=MOST)]
Seconds = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Mib = Annotated[int, Field(gt=0, le=MOST)]
Weight = Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False)]
PriorityNumber = Annotated[int, Field(ge=-MOST, le=MOST)]
ListenHost = Annotated[str, AfterValidator(_listen_host)]
HostName = Annotated[str, AfterValidator(_host_name)]
Origin = Annotated[str, AfterValidator(_origin)]
Proxy = Annotated[str, AfterValidator(_proxy)]
Repository = Annotated[str, AfterValidator(_repository)]
VariableName = Annotated[str, AfterValidator(_variable)]
PlainFile = Annotated[str, AfterValidator(_plain_file)]
Volume = Annotated[str, AfterValidator(_volume)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
CarriedPath = Annotated[str, AfterValidator(_carried_path)]
ModelName = Annotated[str, AfterValidator(_printable)]
TextOrNumber = Annotated[
    str, Field(coerce_numbers_to_str=True), WithJsonSchema({"type": ["string", "number", "boolean"]})
]
# YAML reads a bare `off` as false.
BareOff = BeforeValidator(lambda value: "off" if value is False else value)
PriorityName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """For Python, it is 1."""
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in inside):
            assert info.field_name is not None
            if _is_of_numbers(cls.model_fields[info.field_name].annotation):
                raise ValueError("must be a number, not true or false")
        return value


def _is_of_numbers(annotation: object) -> bool:
    """Whether it is a number, or a list or mapping of numbers."""
    if get_origin(annotation) is dict:
        return _is_of_numbers(get_args(annotation)[1])
    if get_origin(annotation) is Literal:
        return False
    return annotation in (int, float) or any(map(_is_of_numbers, get_args(annotation)))
