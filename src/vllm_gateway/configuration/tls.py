# SPDX-License-Identifier: Apache-2.0
"""What `server.tls` names, as it is used: a context, or what is wrong with the files."""

import ssl
import stat
from pathlib import Path
from typing import Never

from vllm_gateway.configuration.settings import Tls
from vllm_gateway.files.plain import read_plain

_MOST_BYTES = 4 << 20


class BadTls(ValueError):
    """`setting` of `server.tls` is wrong; the text says how, and what to do."""

    def __init__(self, setting: str, text: str) -> None:
        super().__init__(text)
        self.setting = setting


def context_of(tls: Tls) -> ssl.SSLContext:
    """Reads the files. Raises BadTls."""
    for setting, name in (("certificate", tls.certificate), ("key", tls.key), ("client_ca", tls.client_ca)):
        if name is not None:
            _check_readable(setting, Path(name))
    if Path(tls.key).stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadTls("key", f"others than its owner may write {tls.key}: chmod 600 {tls.key}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise BadTls("certificate", _why(error, tls)) from None
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (OSError, ValueError) as error:
            raise BadTls("client_ca", f"{tls.client_ca} holds no certificates in PEM form ({error})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def is_exposed(tls: Tls) -> bool:
    """Whether every user of the machine can read the key."""
    try:
        return bool(Path(tls.key).stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _check_readable(setting: str, path: Path) -> None:
    try:
        content = read_plain(path, _MOST_BYTES)
    except OSError as error:
        raise BadTls(setting, f"{path} cannot be read ({error.strerror})") from None
    if not content:
        raise BadTls(setting, f"{path} is empty")


def _no_passphrase() -> Never:
    raise ValueError("the key has a passphrase, and nobody is there to type it; write it without one (openssl pkey)")


def _why(error: Exception, tls: Tls) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return f"{tls.key} is not the key of {tls.certificate}"
    if reason in ("NO_START_LINE", "PEM_LIB", "BAD_BASE64_DECODE", None) and isinstance(error, ssl.SSLError):
        return f"{tls.certificate} and {tls.key} must hold a certificate and a private key in PEM form"
    return str(error)
