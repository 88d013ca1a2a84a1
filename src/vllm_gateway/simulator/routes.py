# SPDX-License-Identifier: Apache-2.0
"""What each path does: generation, embeddings, transcription, tokens, state, developer's routes, faults."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

from vllm_gateway.simulator import log, media
from vllm_gateway.simulator.api_errors import ApiError, internal_error, missing_field
from vllm_gateway.simulator.application import Context, Route
from vllm_gateway.simulator.engine import Generation
from vllm_gateway.simulator.exchange import JSON_HEADERS, Exchange
from vllm_gateway.simulator.http_server import Header, Reply, Request
from vllm_gateway.simulator.memory_rules import EngineStartError, gib
from vllm_gateway.simulator.metrics import render
from vllm_gateway.simulator.other_replies import MessagesShape, ResponsesShape
from vllm_gateway.simulator.replies import ChatShape, CompletionShape, ReplyShape, to_json
from vllm_gateway.simulator.tokenizer import decode, token_bytes
from vllm_gateway.simulator.validation import (
    Body,
    Wish,
    chat_messages,
    chat_wish,
    check_model,
    completion_wish,
    encode_body_chat,
    messages_ids,
    messages_wish,
    parse_body,
    prompt_ids,
    responses_wish,
)

VERSION = "0.32.0"
_PLAIN: list[Header] = [("vary", "Origin")]
_METRICS_HEADERS: list[Header] = [("content-type", "text/plain; version=1.0.0; charset=utf-8"), ("vary", "Origin")]
_STARTED = int(time.time())


def send_json(reply: Reply, value: Any) -> None:
    reply.send(200, to_json(value), JSON_HEADERS)


def _request_id(request: Request) -> str:
    return request.headers.get("x-request-id") or os.urandom(8).hex()


async def _generate(context: Context, reply: Reply, shape: ReplyShape, wish: Wish) -> Generation:
    return await Exchange(context.engine, reply, shape, wish, context.faults).run()


async def chat(context: Context, request: Request, reply: Reply) -> None:
    body = parse_body(request)
    wish = chat_wish(body, context.arguments)
    shape = ChatShape(
        wish,
        reply_id=f"chatcmpl-{_request_id(request)}",
        model=context.arguments.replies_as(body.get("model")),
        prompt_details=context.arguments.enable_prompt_tokens_details,
    )
    await _generate(context, reply, shape, wish)


async def completions(context: Context, request: Request, reply: Reply) -> None:
    body = parse_body(request)
    wish = completion_wish(body, context.arguments)
    shape = CompletionShape(
        wish,
        reply_id=f"cmpl-{_request_id(request)}",
        model=context.arguments.replies_as(body.get("model")),
        prompt_details=context.arguments.enable_prompt_tokens_details,
    )
    await _generate(context, reply, shape, wish)


async def messages(context: Context, request: Request, reply: Reply) -> None:
    body = parse_body(request)
    wish = messages_wish(body, context.arguments)
    model = context.arguments.replies_as(body.get("model"))
    shape = MessagesShape(reply_id=f"chatcmpl-{_request_id(request)}", model=model)
    await _generate(context, reply, shape, wish)


async def responses(context: Context, request: Request, reply: Reply) -> None:
    body = parse_body(request)
    wish = responses_wish(body, context.arguments)
    previous = body.get("previous_response_id")
    if previous is not None:
        _kept(context, previous)
    reply_id = str(body.get("request_id") or f"resp_{os.urandom(8).hex()}")
    shape = ResponsesShape(
        body,
        reply_id=reply_id,
        item_id=f"msg_{os.urandom(8).hex()}",
        model=context.arguments.replies_as(body.get("model")),
    )
    generation = await _generate(context, reply, shape, wish)
    if context.settings.keeps_responses and body.get("store", True) and generation.finish_reason is not None:
        context.responses[reply_id] = shape.whole(generation)


def _kept(context: Context, response_id: str) -> dict[str, Any]:
    kept = context.responses.get(response_id)
    if kept is None:
        message = f"Response with id '{response_id}' not found."
        raise ApiError(404, message, kind="invalid_request_error", param="response_id")
    return kept


async def kept_response(context: Context, request: Request, reply: Reply) -> None:
    send_json(reply, _kept(context, request.path.split("/")[3]))


async def cancel_response(context: Context, request: Request, reply: Reply) -> None:
    _kept(context, request.path.split("/")[3])
    raise ApiError(400, "Cannot cancel a synchronous response.", kind="invalid_request_error", param="response_id")


async def count_tokens(context: Context, request: Request, reply: Reply) -> None:
    body = parse_body(request)
    given = chat_messages(body)
    check_model(body, context.arguments)
    count = len(messages_ids(body, given))
    send_json(reply, {"input_tokens": count, "context_management": {"original_input_tokens": count}})


async def embeddings(context: Context, request: Request, reply: Reply) -> None:
    body = parse_body(request)
    given = body.get("input")
    if given is None:
        raise missing_field("input", body)
    check_model(body, context.arguments)
    many = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    inputs = [prompt_ids(item) for item in (given if many else [given])]
    tokens = sum(len(ids) for ids in inputs)
    await context.faults.until_lifted("core_hangs")
    await asyncio.sleep(tokens / context.settings.prefill_tokens_per_s)
    as_text = body.get("encoding_format") == "base64"
    data = [
        {"index": index, "object": "embedding", "embedding": media.embedding(ids, as_base64=as_text)}
        for index, ids in enumerate(inputs)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None,
             "completion_tokens_details": None}  # fmt: skip
    head = {"id": f"embd-{_request_id(request)}", "object": "list", "created": int(time.time())}
    send_json(reply, {**head, "model": context.arguments.name, "data": data, "usage": usage})


async def transcriptions(context: Context, request: Request, reply: Reply) -> None:
    fields = media.multipart_fields(request.headers.get("content-type", ""), request.body)
    audio = fields.get("file")
    if audio is None:
        raise missing_field("file", dict(fields))
    check_model({"model": fields.get("model", b"").decode()}, context.arguments)
    text, seconds = media.transcription(audio)
    await context.faults.until_lifted("core_hangs")
    await asyncio.sleep(len(audio) / 1e8)
    if fields.get("response_format") == b"text":
        reply.send(200, text.encode(), [("content-type", "text/plain; charset=utf-8"), *_PLAIN])
    else:
        send_json(reply, {"text": text, "usage": {"type": "duration", "seconds": seconds}})


async def tokenize(context: Context, request: Request, reply: Reply) -> None:
    body = parse_body(request)
    ids = encode_body_chat(body, chat_messages(body)) if "messages" in body else prompt_ids(body.get("prompt"))
    check_model(body, context.arguments)
    texts = [token_bytes(identity).decode("utf-8", "replace").replace(" ", "Ġ") for identity in ids]
    asked = body.get("return_token_strs")
    length = context.arguments.max_model_len
    send_json(
        reply,
        {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": texts if asked else None},
    )


async def detokenize(context: Context, request: Request, reply: Reply) -> None:
    body = parse_body(request)
    if "tokens" not in body:
        raise missing_field("tokens", body)
    check_model(body, context.arguments)
    send_json(reply, {"prompt": decode(body["tokens"])})


async def models(context: Context, request: Request, reply: Reply) -> None:
    own, adapters = context.arguments.served_model_names, context.arguments.adapters
    parents = {**dict.fromkeys(own), **dict.fromkeys(adapters, context.arguments.name)}
    permission = {"id": f"modelperm-{os.urandom(8).hex()}", "object": "model_permission", "created": _STARTED,
                  "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True,
                  "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False, "organization": "*",
                  "group": None, "is_blocking": False}  # fmt: skip
    data = [
        {"id": name, "object": "model", "created": _STARTED, "owned_by": "vllm", "root": context.arguments.model,
         "parent": parent, "max_model_len": context.arguments.max_model_len, "permission": [permission]}
        for name, parent in parents.items()
    ]  # fmt: skip
    send_json(reply, {"object": "list", "data": data})


async def health(context: Context, request: Request, reply: Reply) -> None:
    if context.faults.is_set("never_healthy"):
        await asyncio.get_running_loop().create_future()
    broken = context.engine.dead is not None or context.faults.is_set("health_503")
    reply.send(503 if broken else 200, b"", _PLAIN)


async def ping(context: Context, request: Request, reply: Reply) -> None:
    reply.send(200, b"", _PLAIN)


async def version(context: Context, request: Request, reply: Reply) -> None:
    send_json(reply, {"version": VERSION})


async def load(context: Context, request: Request, reply: Reply) -> None:
    send_json(reply, {"server_load": context.engine.in_flight})


async def metrics(context: Context, request: Request, reply: Reply) -> None:
    engine, arguments = context.engine, context.arguments
    cache_config = {
        "block_size": str(arguments.block_size),
        "enable_prefix_caching": str(arguments.enable_prefix_caching),
        "gpu_memory_utilization": str(arguments.gpu_memory_utilization),
        "kv_cache_memory_bytes": str(arguments.kv_cache_memory_bytes),
        "num_gpu_blocks": str(engine.capacity.kv_blocks),
    }
    text = render(engine.metrics, engine.gauges(), model=arguments.name, cache_config=cache_config)
    reply.send(200, text.encode(), _METRICS_HEADERS)


async def sleep(context: Context, request: Request, reply: Reply) -> None:
    level = int(request.query.get("level", "1"))
    if not context.arguments.enable_sleep_mode:
        raise internal_error("Sleep mode is not enabled. Please enable it by --enable-sleep-mode.")
    await _fail_to_move(context, "sleep_500")
    if not context.engine.sleep_level:
        context.engine.sleep(level)
        await asyncio.sleep(context.settings.wake_s)
        if context.memory is not None:
            before = context.memory.held_mib
            context.asleep_mib = context.memory.release("weights", "kv_cache")
            still = context.memory.held_mib
            log.info(f"Sleep mode freed {gib(before - still)} GiB memory, {gib(still)} GiB memory is still in use.")
        log.info(f"It took {context.settings.wake_s:.6f} seconds to fall asleep.")
    send_json(reply, {"status": "sleeping", "level": level})


async def wake_up(context: Context, request: Request, reply: Reply) -> None:
    await _fail_to_move(context, "wake_500")
    if context.engine.sleep_level:
        if context.memory is not None:
            _retake(context)
        await asyncio.sleep(context.settings.wake_s)
        context.engine.wake()
        log.info(f"It took {context.settings.wake_s:.6f} seconds to wake up tags {{'weights', 'kv_cache'}}.")
    send_json(reply, {"status": "awake", "tags": None})


async def _fail_to_move(context: Context, fault: str) -> None:
    if context.faults.use("sleep_hangs"):
        await asyncio.get_running_loop().create_future()
    if context.faults.use(fault):
        raise internal_error("CUDA error: unspecified launch failure (simulated)")


def _retake(context: Context) -> None:
    """Takes back what was given away asleep, all or nothing; the engine stays asleep if somebody else has it now."""
    assert context.memory is not None
    try:
        for part in list(context.asleep_mib):
            context.memory.take(part, context.asleep_mib[part])
    except EngineStartError as error:
        context.memory.release(*context.asleep_mib)
        raise internal_error(str(error)) from None
    context.asleep_mib = {}


async def is_sleeping(context: Context, request: Request, reply: Reply) -> None:
    send_json(reply, {"is_sleeping": context.engine.sleep_level > 0})


async def pause(context: Context, request: Request, reply: Reply) -> None:
    context.engine.pause(True)
    send_json(reply, {"status": "paused"})


async def resume(context: Context, request: Request, reply: Reply) -> None:
    context.engine.pause(False)
    send_json(reply, {"status": "resumed"})


async def is_paused(context: Context, request: Request, reply: Reply) -> None:
    send_json(reply, {"is_paused": context.engine.paused})


async def reset_prefix_cache(context: Context, request: Request, reply: Reply) -> None:
    context.engine.prefix_cache.clear()
    send_json(reply, {"success": True})


async def get_faults(context: Context, request: Request, reply: Reply) -> None:
    send_json(reply, context.faults.texts())


async def set_faults(context: Context, request: Request, reply: Reply) -> None:
    try:
        given: Body | list[str] = json.loads(request.body or b"[]")
        if isinstance(given, dict):
            given = [name if value in (None, True) else f"{name}={value}" for name, value in given.items()]
        context.faults.replace(given)
    except (ValueError, TypeError, AttributeError) as error:
        raise ApiError(400, str(error)) from None
    if context.on_faults_changed is not None:
        await context.on_faults_changed()
    send_json(reply, context.faults.texts())


def routes(context: Context) -> list[Route]:
    """The routes that this engine has: they depend on what the model can do and on the developer mode."""
    found = [
        Route("GET", "/health", health),
        Route("GET", "/ping", ping),
        Route("POST", "/ping", ping),
        Route("GET", "/version", version),
        Route("GET", "/load", load),
        Route("GET", "/metrics", metrics),
        Route("GET", "/v1/models", models),
        Route("POST", "/tokenize", tokenize),
        Route("POST", "/detokenize", detokenize),
        Route("GET", "/sim/faults", get_faults),
        Route("POST", "/sim/faults", set_faults),
    ]
    if context.arguments.pooling:
        found.append(Route("POST", "/v1/embeddings", embeddings, generates=True))
    elif context.arguments.transcription:
        found.append(Route("POST", "/v1/audio/transcriptions", transcriptions, generates=True))
    else:
        found += [
            Route("POST", "/v1/chat/completions", chat, generates=True),
            Route("POST", "/v1/completions", completions, generates=True),
            Route("POST", "/v1/messages", messages, generates=True),
            Route("POST", "/v1/messages/count_tokens", count_tokens),
            Route("POST", "/v1/responses", responses, generates=True),
            Route("GET", "/v1/responses/{response_id}", kept_response),
            Route("POST", "/v1/responses/{response_id}/cancel", cancel_response),
        ]
    if context.settings.developer_mode:
        found += [
            Route("POST", "/sleep", sleep),
            Route("POST", "/wake_up", wake_up),
            Route("GET", "/is_sleeping", is_sleeping),
            Route("POST", "/pause", pause),
            Route("POST", "/resume", resume),
            Route("GET", "/is_paused", is_paused),
            Route("POST", "/reset_prefix_cache", reset_prefix_cache),
        ]
    return found
