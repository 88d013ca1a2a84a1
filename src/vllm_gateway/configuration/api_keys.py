# SPDX-License-Identifier: Apache-2.0
"""The keys of `server.api_keys`: plain text that may do everything, or a name, a role and where the key stands."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator

from vllm_gateway.files.plain import read_plain

Role = Literal["inference", "metrics", "viewer", "admin"]

_MOST_BYTES = 4096


def _api_key(key: str) -> str:
    if re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", key) is None:
        raise ValueError(
            "a key must not be empty, and its characters printable ASCII, with no space at its ends: "
            "no client could send another one"
        )
    return key


def _key_sha256(digest: str) -> str:
    if re.fullmatch(r"[0-9A-Fa-f]{64}", digest) is None:
        raise ValueError("a SHA-256 is 64 hexadecimal digits: printf %s KEY | sha256sum")
    return digest.lower()


PlainKey = Annotated[str, AfterValidator(_api_key)]


class NamedKey(BaseModel):
    """A key of somebody, and what it may be used for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$", description="Whose key it is: what the queues know it by."
    )
    role: Role = Field(
        "inference",
        description="inference: the paths for clients; metrics: /metrics; viewer: both, and reading /gateway; "
        "admin: everything.",
    )
    key: PlainKey | None = Field(None, repr=False, description="The key itself. Or one of the following.")
    key_sha256: Annotated[str, AfterValidator(_key_sha256)] | None = Field(
        None, repr=False, description="Its SHA-256: printf %s KEY | sha256sum"
    )
    key_file: str | None = Field(None, min_length=1, description="A file that holds it; it is read with this one.")
    _secret: str | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _there_is_one(self) -> "NamedKey":
        if [self.key, self.key_sha256, self.key_file].count(None) != 2:
            raise ValueError("give one of `key`, `key_sha256` and `key_file`")
        self._secret = self.key if self.key_file is None else _read(self.key_file)
        return self

    @property
    def secret(self) -> str | None:
        """The key as clients send it; None: only its digest is known."""
        return self._secret


def _read(name: str) -> str:
    """Raises ValueError."""
    path = Path(name)
    try:
        text = read_plain(path, _MOST_BYTES)
    except OSError as error:
        raise ValueError(f"key_file: {path} cannot be read ({error.strerror})") from None
    try:
        return _api_key(text.decode("ascii").strip())
    except ValueError:
        raise ValueError(f"key_file: {path} must hold one key and nothing else: a line of printable ASCII") from None


def _form(value: object) -> str:
    return "[named]" if isinstance(value, dict | NamedKey) else "[plain]"


AnyKey = Annotated[
    Annotated[PlainKey, Tag("[plain]")] | Annotated[NamedKey, Tag("[named]")], Field(discriminator=Discriminator(_form))
]


def name_of(key: str | NamedKey) -> str:
    """What its caller is called: never the key."""
    return digest_of(key).hex()[:16] if isinstance(key, str) else key.name


def role_of(key: str | NamedKey) -> Role:
    return "admin" if isinstance(key, str) else key.role


def secret_of(key: str | NamedKey) -> str | None:
    return key if isinstance(key, str) else key.secret


def digest_of(key: str | NamedKey) -> bytes:
    secret = secret_of(key)
    if secret is not None:
        return hashlib.sha256(secret.encode()).digest()
    assert isinstance(key, NamedKey)
    assert key.key_sha256 is not None
    return bytes.fromhex(key.key_sha256)
