# SPDX-License-Identifier: Apache-2.0
"""What others do, from their published descriptions, and an oracle: strategies to measure ours against."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import islice

from vllm_gateway.replay.driver import World
from vllm_gateway.scheduling import InstanceView, Outcome, RequestInfo

DECODE_SHARE = 1.0  # to the oracle a token that is still to be generated delays a newcomer as much as one to be read
TREE_TOKENS = 2**24  # a bound on the record of each worker; larger than what a trace fills


class SglangCacheAware:
    """The cache_aware policy of SGLang's router (and vLLM's, a descendant).

    An approximate radix tree for each worker remembers what was sent there. If the busiest worker has more than
    `balance_abs` requests over the idlest and more than `balance_rel` times as many: the shortest queue. Else, if the
    best match is more than `threshold` of the prompt: that worker. Else the worker with the smallest tree.
    """

    def __init__(self, threshold: float, balance_abs: int, balance_rel: float) -> None:
        self._threshold = threshold
        self._balance_abs = balance_abs
        self._balance_rel = balance_rel
        self._trees: dict[str, OrderedDict[int, None]] = {}

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        chosen = self._chosen(request, instances)
        tree = self._tree(chosen)
        for block in reversed(request.prompt.blocks):
            tree[block] = None
            tree.move_to_end(block)
        while len(tree) * request.prompt.block_tokens > TREE_TOKENS:
            tree.popitem(last=False)
        return chosen

    def _chosen(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        idlest = min(instances, key=lambda one: one.in_flight)
        most, least = max(one.in_flight for one in instances), idlest.in_flight
        if most - least > self._balance_abs and most > self._balance_rel * least:
            return idlest
        blocks = request.prompt.blocks
        matches = [leading(blocks, self._tree(one)) for one in instances]
        if blocks and max(matches) / len(blocks) > self._threshold:
            return instances[matches.index(max(matches))]
        return min(instances, key=lambda one: len(self._tree(one)))

    def _tree(self, instance: InstanceView) -> OrderedDict[int, None]:
        return self._trees.setdefault(instance.instance_id, OrderedDict())


def leading(blocks: Sequence[int], known: OrderedDict[int, None]) -> int:
    return next((at for at, block in enumerate(blocks) if block not in known), len(blocks))


class DynamoCost:
    """The cost of NVIDIA Dynamo's KV router; the minimum wins.

    `overlap_weight x prefill blocks + decode blocks`: prefill blocks are the uncached ones of this request and of those
    whose first token has not come; decode blocks are those that the active requests of the worker and this one hold.
    The caches are known exactly, as Dynamo learns them from the engines' own events.
    """

    def __init__(self, world: World, overlap_weight: float = 1.0) -> None:
        self._engines = world.engines
        self._weight = overlap_weight
        self._prefill: dict[str, dict[str, int]] = {name: {} for name in world.engines}
        self._active: dict[str, Counter[int]] = {name: Counter() for name in world.engines}
        self._prefill_blocks = dict.fromkeys(world.engines, 0)

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        chosen = min(instances, key=lambda one: self._cost(request, one.instance_id))
        name = chosen.instance_id
        new = self._new_blocks(request, name)
        self._prefill[name][request.request_id] = new
        self._prefill_blocks[name] += new
        self._active[name].update(request.prompt.blocks)
        return chosen

    def _cost(self, request: RequestInfo, name: str) -> float:
        active = self._active[name]
        decode = len(active) + sum(block not in active for block in request.prompt.blocks)
        return self._weight * (self._prefill_blocks[name] + self._new_blocks(request, name)) + decode

    def _new_blocks(self, request: RequestInfo, name: str) -> int:
        return len(request.prompt.blocks) - self._engines[name].cache.leading(request.prompt.blocks)

    def first_byte(self, request: RequestInfo, instance: InstanceView) -> None:
        self._prefill_blocks[instance.instance_id] -= self._prefill[instance.instance_id].pop(request.request_id)

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        active = self._active[instance.instance_id]
        for block in request.prompt.blocks:
            active[block] -= 1
            if not active[block]:
                del active[block]


class Oracle:
    """The delay of a request and of those behind it, where nothing has to be guessed: it looks into the engines' caches
    and queues. What is read twice counts as often as requests wait, whatever they share."""

    def __init__(self, world: World) -> None:
        self._engines = world.engines
        self._queued: dict[str, dict[str, float]] = {name: {} for name in world.engines}
        self._queued_blocks: dict[str, Counter[int]] = {name: Counter() for name in world.engines}

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        behind = sum(map(len, self._queued.values())) / len(self._queued)
        chosen = min(instances, key=lambda one: self._cost(request, one.instance_id, behind))
        name = chosen.instance_id
        self._queued[name][request.request_id] = self._prefill_s(request, name)
        self._queued_blocks[name].update(request.prompt.blocks)
        return chosen

    def _cost(self, request: RequestInfo, name: str, behind: float) -> float:
        engine = self._engines[name]
        waiting = sum(one.first_token_s is None for one in engine.waiting)  # else it was preempted
        last_come = islice(reversed(self._queued[name].values()), waiting)
        queued = engine.prefilling_s + sum(last_come)
        decoding = engine.decoding * request.output_tokens * DECODE_SHARE * engine.timing.prefill_token_s
        return queued + self._prefill_s(request, name) * (1 + behind) + decoding

    def _prefill_s(self, request: RequestInfo, name: str) -> float:
        """With what will be in the cache when its turn comes: what is there now, and the prompts ahead of it."""
        cache, queued = self._engines[name].cache, self._queued_blocks[name]
        prompt, blocks = request.prompt, request.prompt.blocks
        hits = next((at for at, one in enumerate(blocks) if one not in cache and one not in queued), len(blocks))
        cached = min(prompt.tokens - 1, hits * prompt.block_tokens)
        return self._engines[name].timing.prefill_s(cached, prompt.tokens)

    def first_byte(self, request: RequestInfo, instance: InstanceView) -> None:
        del self._queued[instance.instance_id][request.request_id]
        queued = self._queued_blocks[instance.instance_id]
        for block in request.prompt.blocks:
            queued[block] -= 1
            if not queued[block]:
                del queued[block]
