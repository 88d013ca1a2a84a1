# SPDX-License-Identifier: Apache-2.0
"""The simulated engine as a plain function: a request's path and body in, the events of its stream out."""

import asyncio

from vllm_gateway.bodies.payload import Payload
from vllm_gateway.simulator.arguments import parse_arguments
from vllm_gateway.simulator.engine import Generation
from vllm_gateway.simulator.http_server import Request
from vllm_gateway.simulator.replies import ChatShape, CompletionShape
from vllm_gateway.simulator.validation import Wish, chat_wish, completion_wish, parse_body
from vllm_gateway.streams.asked import Kind

ARGUMENTS = parse_arguments(["--model", "m/m", "--served-model-name", "m"])


def sent(body: Payload) -> bytes:
    """As it is on the wire."""
    return b"".join(body) if isinstance(body, tuple) else bytes(body)


def answer(path: str, body: Payload, instance: str) -> list[bytes]:
    """All events of the stream, with the id that this instance gives it."""
    request = Request("POST", path, {}, {"content-type": "application/json"}, sent(body))
    shape: ChatShape | CompletionShape
    if path == Kind.CHAT.value:
        wish = chat_wish(parse_body(request), ARGUMENTS)
        shape = ChatShape(wish, reply_id=instance, model="m", prompt_details=False)
    else:
        wish = completion_wish(parse_body(request), ARGUMENTS)
        shape = CompletionShape(wish, reply_id=instance, model="m", prompt_details=False)
    return asyncio.run(_events(wish, shape))


async def _events(wish: Wish, shape: ChatShape | CompletionShape) -> list[bytes]:
    generation = Generation(wish.prompt, max_tokens=wish.max_tokens, stop_at_end=wish.stop_at_end)
    wire = b""
    while generation.finish_reason is None:
        before = len(generation.tokens)
        generation.advance()
        wire += b"" if before else shape.opening(generation)
        wire += shape.tokens(generation, generation.tokens[before:])
    return [event + b"\n\n" for event in (wire + shape.closing(generation)).split(b"\n\n")[:-1]]
