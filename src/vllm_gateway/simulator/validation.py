# SPDX-License-Identifier: Apache-2.0
"""From a request's body to what the engine shall generate, with vLLM's own complaints where the body is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_gateway.simulator.api_errors import ApiError, bad_parameter, invalid_body, missing_field
from vllm_gateway.simulator.arguments import Arguments
from vllm_gateway.simulator.http_server import Request
from vllm_gateway.simulator.tokenizer import decode, encode, encode_chat

COMPLETIONS_DEFAULT_MAX_TOKENS = 16
"""vLLM's, for /v1/completions without max_tokens; with an explicit null there is no limit but the context."""

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wish:
    """What one request wants from the engine."""

    prompt: list[int]
    max_tokens: int
    stop_at_end: bool
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    choices: int = 1
    salt: str = ""
    role: str = "assistant"
    echo: bool = False

    def text(self, tokens: Sequence[int], *, from_start: bool = False) -> str:
        """Tokens of the reply as text; at its start, with `echo`, the prompt comes first."""
        return decode([*self.prompt, *tokens] if self.echo and from_start else tokens)


def parse_body(request: Request) -> Body:
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise ApiError(400, message, kind="Bad Request")
    try:
        body = json.loads(request.body)
    except json.JSONDecodeError as error:
        where = f"body.{error.pos}"
        raise invalid_body(
            "json_invalid", where, "JSON decode error", "<dict of 0 items>", ctx={"error": error.msg}
        ) from None
    except UnicodeDecodeError:
        raise invalid_body("json_invalid", "body.0", "JSON decode error", "<dict of 0 items>") from None
    if not isinstance(body, dict):
        raise invalid_body("dict_type", "body", "Input should be a valid dictionary", str(body)[:80])
    return body


def _flag(body: Body, name: str) -> bool:
    """As pydantic reads one."""
    value = body.get(name)
    word = str(value).lower() if isinstance(value, str | int) else value
    if word in ("1", "true", "t", "yes", "y", "on", 1.0):
        return True
    if value is None or word in ("0", "false", "f", "no", "n", "off", 0.0):
        return False
    raise invalid_body("bool_parsing", f"body.{name}", "Input should be a valid boolean", str(value))


def check_model(body: Body, arguments: Arguments) -> None:
    """A request without a model is served; one that names another model is not."""
    name = body.get("model")
    if name and name not in arguments.served_model_names + arguments.adapters:
        aliases = ", ".join(arguments.served_model_names)
        message = f"The model `{name}` does not exist. Valid aliases: {aliases}."
        raise ApiError(404, message, kind="NotFoundError", param="model")


def chat_wish(body: Body, arguments: Arguments) -> Wish:
    _check_numbers(body)
    messages = chat_messages(body)
    check_model(body, arguments)
    if body.get("tools") and body.get("tool_choice", "auto") == "auto" and not arguments.enable_auto_tool_choice:
        message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        raise ApiError(400, message)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is None and 0 in (body.get("max_tokens"), body.get("max_completion_tokens")):
        limit = 0
    continues = bool(body.get("continue_final_message"))
    return _wish(
        body,
        arguments,
        encode_body_chat(body, messages),
        limit,
        role=messages[-1][0] if continues else "assistant",
    )


def chat_messages(body: Body) -> list[tuple[str, str]]:
    """(role, text) of each message; parts that are no text leave a mark of their kind."""
    messages = body.get("messages")
    if messages is None:
        raise missing_field("messages", body)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise invalid_body("list_type", "body.messages", "Input should be a valid list", str(messages)[:80])
    if not messages:
        raise ApiError(400, "list index out of range")
    return [(str(message.get("role", "user")), content_text(message.get("content"))) for message in messages]


def encode_body_chat(body: Body, messages: Sequence[tuple[str, str]]) -> list[int]:
    continues = bool(body.get("continue_final_message"))
    generation_prompt = bool(body.get("add_generation_prompt", True))
    if continues and generation_prompt:
        raise ApiError(
            400,
            "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you "
            "want the model to continue the final message, and add_generation_prompt when you want to add a header "
            "that will prompt it to start a new assistant message instead.",
        )
    return encode_chat(messages, generation_prompt=generation_prompt, continue_final=continues)


def completion_wish(body: Body, arguments: Arguments) -> Wish:
    _check_numbers(body)
    if body.get("prompt") is None:
        raise missing_field("prompt", body)
    check_model(body, arguments)
    limit = body.get("max_tokens", COMPLETIONS_DEFAULT_MAX_TOKENS)
    return _wish(body, arguments, prompt_ids(body["prompt"]), limit)


def messages_wish(body: Body, arguments: Arguments) -> Wish:
    """Anthropic's /v1/messages."""
    _check_numbers(body)
    messages = chat_messages(body)
    check_model(body, arguments)
    return _wish(body, arguments, messages_ids(body, messages), body.get("max_tokens"))


def messages_ids(body: Body, messages: Sequence[tuple[str, str]]) -> list[int]:
    system = [("system", content_text(body["system"]))] if body.get("system") else []
    return encode_chat([*system, *messages], generation_prompt=True, continue_final=False)


def responses_wish(body: Body, arguments: Arguments) -> Wish:
    _check_numbers(body)
    given = body.get("input")
    if given is None:
        raise missing_field("input", body)
    check_model(body, arguments)
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    system = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    messages = chat_messages({"messages": [*system, *items]})
    prompt = encode_chat(messages, generation_prompt=True, continue_final=False)
    return _wish(body, arguments, prompt, body.get("max_output_tokens"))


def prompt_ids(prompt: object) -> list[int]:
    """A prompt as text or as token ids, or a list with one of these."""
    if isinstance(prompt, str):
        return encode(prompt)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, int) for item in prompt):
            if min(prompt) < 0:
                raise ApiError(400, f"Token id {min(prompt)} is out of vocabulary")
            return list(prompt)
        if len(prompt) == 1:
            return prompt_ids(prompt[0])
        raise ApiError(400, "The simulated engine takes one prompt a request.", param="prompt")
    raise ApiError(400, "Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")


def content_text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            str(part.get("text") or f"<{part.get('type', 'part')}>") if isinstance(part, dict) else str(part)
            for part in content
        )
    return ""


def _wish(body: Body, arguments: Arguments, prompt: list[int], limit: int | None, role: str = "assistant") -> Wish:
    longest = arguments.max_model_len
    if limit is not None and limit < 1:
        raise bad_parameter("max_tokens", limit, f"max_tokens must be at least 1, got {limit}.")
    if limit is not None and limit > longest:
        complaint = f"max_tokens={limit} cannot be greater than max_model_len={longest}."
        raise bad_parameter("max_tokens", limit, f"{complaint} Please request fewer output tokens.")
    room = longest - len(prompt)
    if room < 1 or (limit is not None and limit > room):
        wanted = f"{limit} output tokens and " if limit is not None else ""
        raise bad_parameter(
            "input_tokens",
            len(prompt),
            f"This model's maximum context length is {longest} tokens. However, you requested {wanted}your prompt "
            f"contains {len(prompt)} input tokens. Please reduce the length of the input prompt or the number of "
            "requested output tokens.",
        )
    if not prompt:
        raise ApiError(400, "Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
    options = body.get("stream_options") or {}
    return Wish(
        prompt=prompt,
        max_tokens=limit or room,
        # With a limit the reply has that many tokens, so that tests know what they get; all the room is no limit.
        stop_at_end=(limit is None or limit == room) and not body.get("ignore_eos"),
        stream=_flag(body, "stream"),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        return_token_ids=bool(body.get("return_token_ids")),
        choices=body.get("n") or 1,
        salt=str(body.get("cache_salt") or ""),
        role=role,
        echo=bool(body.get("echo")),
    )


def _check_numbers(body: Body) -> None:
    for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty"):
        value = body.get(name)
        if value is None:
            continue
        try:
            body[name] = float(value)
        except (TypeError, ValueError):
            message = "Input should be a valid number, unable to parse string as a number"
            raise invalid_body("float_parsing", f"body.{name}", message, str(value)) from None
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
        value = body.get(name)
        if value is not None and not isinstance(value, int):
            message = "Input should be a valid integer, unable to parse string as an integer"
            raise invalid_body("int_parsing", f"body.{name}", message, str(value))
    temperature = body.get("temperature")
    if temperature is not None and temperature < 0:
        raise bad_parameter("temperature", temperature, f"temperature must be non-negative, got {temperature}.")
