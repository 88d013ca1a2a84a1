# SPDX-License-Identifier: Apache-2.0
"""What the client of a stream asked for, and whether its stream could be continued by another instance.

A stream is continued from the ids of its tokens: the prompt's and those generated so far become the prompt of a new
request. That is exact only if nothing else decides what comes next. So each field of a request is known here as
harmless, or harmless with certain values; a request with any other field is not continued.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import msgspec

from vllm_gateway.bodies.flags import Flag, is_true, truth
from vllm_gateway.bodies.limits import Malformed
from vllm_gateway.bodies.payload import Body, Payload

Fields: TypeAlias = Mapping[str, msgspec.Raw]


class Resume(Enum):
    """What happens to a stream whose instance failed."""

    EXACT = "exact"
    BEST_EFFORT = "best_effort"
    OFF = "off"


class Kind(Enum):
    """The two kinds of streams that can be continued, by their path."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"


_KINDS = {kind.value: kind for kind in Kind}

_OFF = frozenset({b"null", b"false", b"0", b"0.0", b"[]", b'""', b"{}"})
_ONE = frozenset({b"null", b"1"})

CARRIED_OVER = frozenset(
    {
        "model",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "repetition_penalty",
        "logit_bias",
        "allowed_token_ids",
        "stop",
        "stop_token_ids",
        "include_stop_str_in_output",
        "ignore_eos",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "cache_salt",
        "priority",
        "user",
    }
)
"""These mean the same in the request that continues: how each token is chosen and written."""

_ONLY_HERE = frozenset(
    {
        "messages",
        "stream",
        "return_token_ids",
        "add_generation_prompt",
        "continue_final_message",
        "add_special_tokens",
        "chat_template",
        "chat_template_kwargs",
        "documents",
        "reasoning_effort",
        "parallel_tool_calls",
        "request_id",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "verbosity",
    }
)
"""These shape the prompt or the reply, or are of no effect on the tokens."""

_FREE = (CARRIED_OVER - {"stop"}) | _ONLY_HERE

_COUNTS = frozenset({"max_tokens", "max_completion_tokens", "min_tokens"})
"""What is left of these is asked of the next instance. Engines also take numbers in other forms than whole ones."""

_HARMLESS_VALUES: Mapping[str, frozenset[bytes]] = {
    "n": _ONE,
    "best_of": _ONE,
    "tool_choice": _OFF | {b'"none"'},
    "response_format": _OFF | {b'{"type":"text"}', b'{"type": "text"}'},
    "include_reasoning": frozenset({b"null", b"true"}),
    **dict.fromkeys(
        (
            "logprobs",
            "top_logprobs",
            "prompt_logprobs",
            "echo",
            "suffix",
            "use_beam_search",
            "tools",
            "functions",
            "function_call",
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "structured_outputs",
            "logits_processors",
            "truncate_prompt_tokens",
            "vllm_xargs",
        ),
        _OFF,
    ),
}

_ONLY_FOR_IDS = frozenset(
    {
        # The engine holds text back that may be the begin of a stop text: the ids are ahead of what was sent. And it
        # looks for stop texts in the reply alone: not for one that begins in what is the prompt's now.
        "stop",
        # These count the tokens of the reply alone, which are the prompt's in the request that continues.
        "presence_penalty",
        "frequency_penalty",
        "bad_words",
    }
)
"""With any of these the ids do not tell exactly where to go on."""


class _StreamOptions(msgspec.Struct):
    include_usage: Flag = None
    continuous_usage_stats: Flag = None


@dataclass(frozen=True, slots=True)
class Known:
    """What has been found in a large body already."""

    fields: Fields
    body: Payload
    prompts: int = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a stream."""

    kind: Kind
    body: Payload
    obstacle: str | None
    """The field for which the stream cannot be continued in any way."""
    obstacle_for_ids: str | None
    """The field for which it cannot be continued exactly."""
    choices: int = 1
    token_ids: bool = False
    """Whether the client wants to see them."""
    include_usage: bool = False
    continuous_usage: bool = False
    fields: Fields | None = None
    """Of a large body, undecoded."""

    def obstacle_to(self, resume: Resume) -> str | None:
        """Why the stream will not be continued, whatever is said in it; None if it may be."""
        if resume is Resume.OFF:
            return "resume is off"
        return self.obstacle or (self.obstacle_for_ids if resume is Resume.EXACT else None)


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_stop = msgspec.json.Decoder(str | list[str] | None).decode
_NOT_READABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Malformed)
_LONGEST_VALUE = 4096
_LONGEST_END = 64 * 1024
_TOKEN_IDS = b',"return_token_ids":true}'
_COUNT = re.compile(rb"[0-9]{1,18}")
_NUMBER = re.compile(rb'"?([0-9]{1,9})(?:\.0*)?"?')  # in the forms in which engines take one
_ONE_PROMPT = re.compile(rb"\s*+(?:[^\[\s]|\[\s*+[^\[\s\"])")
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_options = msgspec.json.Decoder(_StreamOptions | None).decode


def _beginning(value: msgspec.Raw) -> bytes:
    """All of it, unless it is longer than any value that is known as harmless."""
    return bytes(memoryview(value)[: _LONGEST_VALUE + 1])


def fields_of(asked: Asked) -> Fields:
    """The fields of a request, undecoded."""
    if asked.fields is not None:
        return asked.fields
    assert isinstance(asked.body, bytes | bytearray)
    return _fields(asked.body)


def asked(path: str, body: Body, known: Known | None = None) -> Asked | None:
    """What the body asks for; None if it is no request for a stream of these kinds. `known`: of a large body."""
    kind = _KINDS.get(path)
    if kind is None:
        return None
    try:
        fields = _fields(body) if known is None else known.fields
    except _NOT_READABLE:
        return None  # the engine says what is wrong with it
    if not is_true(fields.get("stream")):
        return None
    include_usage = continuous_usage = False
    obstacle = obstacle_for_ids = None
    prompts = 1
    for name in fields.keys() - _FREE:
        if name == "prompt":
            prompts = _prompts(memoryview(fields[name])) if known is None else known.prompts
            obstacle = obstacle if prompts == 1 else "more than one prompt"
            continue
        value = bytes(fields[name]) if known is None else _beginning(fields[name])
        if len(value) > _LONGEST_VALUE:
            obstacle = name
        elif name == "stream_options":
            try:
                options = _options(value) or _StreamOptions()
                include_usage, continuous_usage = truth(options.include_usage), truth(options.continuous_usage_stats)
            except _NOT_READABLE:
                obstacle = name
        elif name in _COUNTS:
            obstacle = obstacle if value == b"null" or _COUNT.fullmatch(value) else name
        elif name == "stop" and _are_characters(value):
            continue  # nothing is held back for them, and none of them can begin before and end after
        elif name in _ONLY_FOR_IDS:
            obstacle_for_ids = obstacle_for_ids if value in _OFF else name
        elif value not in _HARMLESS_VALUES.get(name, ()):
            obstacle = name
    return Asked(
        kind,
        body if known is None else known.body,
        obstacle,
        obstacle_for_ids,
        choices=prompts * _choices(fields),
        token_ids=is_true(fields.get("return_token_ids")),
        include_usage=include_usage,
        continuous_usage=include_usage and continuous_usage,
        fields=None if known is None else known.fields,
    )


def _are_characters(stop: bytes) -> bool:
    """Whether each stop text is a single character."""
    try:
        texts = _stop(stop)
    except _NOT_READABLE:
        return False
    return all(len(text) == 1 for text in texts) if isinstance(texts, list) else texts is not None and len(texts) == 1


def _prompts(prompt: memoryview) -> int:
    """How many: a list of texts, or of lists of ids, is that many; a list of ids is one."""
    if _ONE_PROMPT.match(prompt):
        return 1
    try:
        return max(1, len(_list(prompt)))
    except _NOT_READABLE:
        return 1  # none that an engine takes


def _choices(fields: Fields) -> int:
    """How many choices each prompt has in the reply, at least."""
    found = _NUMBER.fullmatch(memoryview(fields.get("n", b"")))
    return max(1, int(found[1])) if found else 1


def with_token_ids(body: Payload) -> Payload:
    """The same request, which asks for the ids of the tokens too."""
    return with_end(body, _TOKEN_IDS)


def with_end(body: Payload, end: bytes) -> Payload:
    """The same request with one field more, in place of its last brace. Large bodies are not re-written.

    At the end, where it holds even if the client has said otherwise.
    """
    if not isinstance(body, tuple):
        return body[: body.rindex(b"}")] + end
    *before, last = body
    return (*before, last[: _last_brace(last)], end)


def _last_brace(body: bytes | memoryview) -> int:
    """Where it stands; behind it is only white space."""
    end = max(0, len(body) - _LONGEST_END)
    return end + bytes(body[end:]).rindex(b"}")
