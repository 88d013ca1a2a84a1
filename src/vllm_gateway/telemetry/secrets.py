# SPDX-License-Identifier: Apache-2.0
"""The secrets that the gateway knows, masked in what others write before it becomes part of any text of ours."""

import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, quote_plus

MASK = "***"
_SHORTEST = 4  # what is shorter would mask half of every text, and is guessed anyway
_SURELY_ONE = 8  # what is shorter is masked as a word of its own
_NO_SECRETS = frozenset({"true", "false", "none", "null", "auto"})
_SAYS_SO = re.compile(r".*(?:token|key|secret|passw(?:or)?d|passphrase|credentials?)[0-9]*")
_TELLS_ABOUT_ONE = frozenset({"dir", "file", "id", "ids", "length", "name", "path", "type", "url"})
_IN_URLS = (
    re.compile(r"(://)[^\s/?#\"'<>]*(@)"),
    re.compile(
        r"([?&;][\w.-]*(?:token|key|secret|passw(?:or)?d|credential|signature|sig)=)[^\s&;\"'<>]+()", re.IGNORECASE
    ),
)
_SCHEME = r"(?:(?:bearer|basic|token)\s{1,8})?"
_IS = r"[\"']?\s{0,8}[:=]\s{0,8}[\"']?" + _SCHEME
_IN_HEADERS = re.compile(rf"(\b(?:proxy-)?authorization{_IS})[^\s\"',;]+", re.IGNORECASE)
_NAMED = re.compile(rf"(?<![\w.-])([\w.-]{{1,64}})(?={_IS}([^\s\"',;{{}}\[\]]+))", re.IGNORECASE)
_CARRIES_ONE = frozenset({"authorization", "proxy-authorization", "cookie"})


def names_a_secret(name: str) -> bool:
    """Of a variable or an option: HF_TOKEN does, TOKENIZERS_PARALLELISM does not."""
    words = re.split(r"[_.-]+", name.lower())
    return words[-1] not in _TELLS_ABOUT_ONE and any(_SAYS_SO.fullmatch(word) for word in words)


def mask_urls(text: str) -> str:
    """Without the credentials that URLs and `Authorization` headers carry, known or not."""
    for pattern in _IN_URLS:
        text = pattern.sub(rf"\1{MASK}\2", text)
    return _IN_HEADERS.sub(rf"\1{MASK}", text)


class Secrets:
    """What has been learnt is never forgotten: engines that were given it outlive a change of the configuration."""

    def __init__(self) -> None:
        self._forms: list[str] = []

    def learn(self, values: Iterable[str | None]) -> None:
        found = {form for value in values if value for line in value.splitlines() for form in _forms(line.strip())}
        self._forms = sorted(found.union(self._forms))

    def learn_environment(self, environment: Mapping[str, str]) -> None:
        """Of the variables whose names say so, and of those that are URLs with credentials."""
        self.learn(value for name, value in environment.items() if names_a_secret(name))
        for value in environment.values():
            self.learn(re.findall(r"://[^\s/:@]*:([^\s/]*)@", value))
            self.learn(_named_in(value))

    def learn_arguments(self, arguments: Sequence[str]) -> None:
        """Of a command line's options whose names say so, `--hf-token X` or `--hf-token=X`, and what values name."""
        for index, argument in enumerate(arguments):
            name, is_joined, value = argument.partition("=")
            if name.startswith("-") and names_a_secret(name):
                values = [value] if is_joined else arguments[index + 1 : index + 2]
                self.learn(value for value in values if not value.startswith("-"))
            self.learn(_named_in(value if name.startswith("-") else argument))

    def mask(self, text: str, *, is_cut: bool = False) -> str:
        """`is_cut`: more followed, so that its end may be the beginning of a secret."""
        spans = [span for form in self._forms for span in _places(text, form)]
        if is_cut:
            spans += [(len(text) - length, len(text)) for form in self._forms if (length := _begun_at_end(text, form))]
        if spans:
            text = _without(text, sorted(spans))
        return mask_urls(text)


def _named_in(text: str) -> list[str]:
    """The secrets that a list of headers or a JSON text names: `Authorization: Bearer X`, `{"api_key": "X"}`."""
    found = _NAMED.findall(text)
    return [value for name, value in found if name.lower() in _CARRIES_ONE or names_a_secret(name)]


def _forms(value: str) -> set[str]:
    """As it may be written: plain, in a URL, in JSON or Python, in base64 or hexadecimal."""
    if len(value) < _SHORTEST or value.lower() in _NO_SECRETS:
        return set()
    quoted = {quote(value), quote(value, safe=""), quote_plus(value)}
    lower = {re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), form) for form in quoted}
    escaped = {json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value)}
    escaped |= {form.replace("/", "\\/") for form in escaped}  # as JSON may be written, and PHP's is
    encoded = _encoded(value.encode("utf-8", "surrogateescape")) if len(value) >= _SURELY_ONE else set()
    return {value, *quoted, *lower, *(form[1:-1] for form in escaped), *encoded}


def _encoded(value: bytes) -> set[str]:
    """In base64 wherever it begins in what is encoded, as behind `user:`: the characters that it alone decides on."""
    found = {value.hex(), value.hex().upper()}
    for encode in (b64encode, urlsafe_b64encode):
        found.add(encode(value).decode())
        for before in range(3):
            text = encode(bytes(before) + value).decode()
            found.add(text[(before * 8 + 5) // 6 : (before + len(value)) * 8 // 6])
    return found


def _places(text: str, form: str) -> Iterable[tuple[int, int]]:
    start = text.find(form)
    while start >= 0:
        end = start + len(form)
        if len(form) >= _SURELY_ONE or not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()):
            yield start, end
        start = text.find(form, start + 1)


def _begun_at_end(text: str, form: str) -> int:
    """How much of it."""
    lengths = range(min(len(form) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(form[:length])), 0)


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Secrets that overlap, or follow each other, become one mask."""
    shown, done = "", 0
    for start, end in spans:
        if start > done or not shown:
            shown += text[done:start] + MASK
        done = max(done, end)
    return shown + text[done:]
