# SPDX-License-Identifier: Apache-2.0
"""Made-up traffic of known kinds, so that nothing is tuned to one recorded trace; also makes the sample that ships."""

import gzip
import heapq
import io
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from vllm_gateway.replay.trace import BLOCK_TOKENS, Trace, TracedRequest


@dataclass(frozen=True, slots=True)
class Kind:
    """Chats that come at random, each a few turns long: a turn's prompt is all that was said before and a message."""

    chats_per_s: float = 0.5
    turns: float = 4.0  # on average
    pause_s: float = 40.0  # between a reply's request and the next message, on average
    system_prompts: int = 8  # shared by all chats, the first far more popular than the last
    system_tokens: int = 1800
    message_tokens: float = 250.0  # median
    message_spread: float = 1.2  # of its logarithm
    reply_tokens: float = 180.0
    reply_spread: float = 0.8


KINDS = {
    "chats": Kind(),
    "agents": Kind(turns=12, pause_s=8, system_prompts=3, system_tokens=6000, message_tokens=900, reply_tokens=90),
    "documents": Kind(turns=1, system_prompts=0, system_tokens=0, message_tokens=4000, message_spread=1.0),
}


def make(kind: Kind, count: int, seed: int) -> Trace:
    """The first `count` requests. "documents" have no shared prefixes at all."""
    random = Random(seed)
    requests: list[TracedRequest] = []
    turns: list[tuple[float, int, int, int]] = []  # heap: when, chat, system prompt, tokens said so far
    chats, next_chat_s = 0, 0.0
    while len(requests) < count:
        if not turns or turns[0][0] > next_chat_s:
            heapq.heappush(turns, (next_chat_s, chats, _system_prompt(kind, random), kind.system_tokens))
            chats += 1
            next_chat_s += random.expovariate(kind.chats_per_s)
            continue
        at, chat, system, said = heapq.heappop(turns)
        tokens = said + _lognormal(random, kind.message_tokens, kind.message_spread)
        reply = _lognormal(random, kind.reply_tokens, kind.reply_spread)
        requests.append(TracedRequest(at, tokens, reply, _blocks(kind, chat, system, tokens)))
        if random.random() > 1 / kind.turns:
            heapq.heappush(turns, (at + random.expovariate(1 / kind.pause_s), chat, system, tokens + reply))
    return Trace(tuple(requests), BLOCK_TOKENS)


def _system_prompt(kind: Kind, random: Random) -> int:
    numbers = range(kind.system_prompts)
    return random.choices(numbers, [1 / (number + 1) for number in numbers])[0] if kind.system_prompts else 0


def _lognormal(random: Random, median: float, spread: float) -> int:
    return max(1, min(60_000, round(median * random.lognormvariate(0, spread))))


def _blocks(kind: Kind, chat: int, system: int, tokens: int) -> tuple[int, ...]:
    """Whole blocks only: those of the system prompt are everybody's, the others the chat's own."""
    shared = kind.system_tokens // BLOCK_TOKENS
    return tuple(
        system * 1000 + block if block < shared else (chat + 1) * 1_000_000 + block
        for block in range(tokens // BLOCK_TOKENS)
    )


def write(trace: Trace, path: Path) -> None:
    """As compressed JSON lines, the blocks numbered as they come; the same trace always makes the same file."""
    numbers: dict[int, int] = {}
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed) as out,
    ):
        for one in trace.requests:
            row = {
                "timestamp": round(one.arrival_s * 1000),
                "input_length": one.input_tokens,
                "output_length": one.output_tokens,
                "hash_ids": [numbers.setdefault(block, len(numbers)) for block in one.blocks],
            }
            out.write(json.dumps(row) + "\n")
