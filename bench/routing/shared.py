# SPDX-License-Identifier: Apache-2.0
"""Made-up traffic of one shape: prompts that begin alike by group, with tails and replies of their own."""

from dataclasses import dataclass
from random import Random

from vllm_gateway.replay.trace import Trace, TracedRequest

BLOCK_TOKENS = 128  # as the gateway counts them
TAIL_TOKENS = 80.0  # median
TAIL_SPREAD = 0.9  # of its logarithm


@dataclass(frozen=True, slots=True)
class Shape:
    prefix_tokens: int
    groups: int  # of requests that share a prefix; 0: each has one of its own
    reply_tokens: int  # on average


def make(shape: Shape, count: int, seed: int, *, per_s: float = 1.0) -> Trace:
    """Independent requests, `per_s` of them a second."""
    random = Random(seed)
    now_s, requests = 0.0, []
    for number in range(count):
        group = random.randrange(shape.groups) if shape.groups else number
        tail = max(1, min(2000, round(TAIL_TOKENS * random.lognormvariate(0, TAIL_SPREAD))))
        tokens = shape.prefix_tokens + tail
        reply = max(1, round(shape.reply_tokens * random.uniform(0.5, 1.5)))
        requests.append(TracedRequest(now_s, tokens, reply, _blocks(shape, group, number, tokens)))
        now_s += random.expovariate(per_s)
    return Trace(tuple(requests), BLOCK_TOKENS)


def _blocks(shape: Shape, group: int, number: int, tokens: int) -> tuple[int, ...]:
    """Whole blocks; one that holds the end of the prefix and the beginning of a tail is the request's own."""
    shared = shape.prefix_tokens // BLOCK_TOKENS
    return tuple(
        group * 1_000 + block if block < shared else (number + 1) * 1_000_000 + block
        for block in range(tokens // BLOCK_TOKENS)
    )
