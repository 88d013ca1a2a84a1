# SPDX-License-Identifier: Apache-2.0
"""How long one step of the engine takes. The constants and where they come from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Llama 3.1 8B in bfloat16 under vLLM on one H100 with 80 GB; another GPU or model scales them, mostly together.

    - `step_s`: the weights, 16.1 GB, are read once a step, at 77 % of 3.35 TB/s: so much of its memory's bandwidth an
      A100 was measured to reach (75 tokens/s, https://johnmusgrave.com/p/vllm-throughput-latency-sweep-on).
    - `context_token_s`: the keys and values of a context token are read for each token made: 2 x 32 layers x 8 heads x
      128 x 2 bytes = 128 KiB, at the same rate.
    - `prefill_token_s`: 2 x 8.03e9 operations at half of the GPU's 989 Tflop/s.
    - `attention_pair_s`: each new token attends to all before it: 4 x 32 layers x 4096 operations at the same rate.
    - `sequence_s`: sampling and bookkeeping for each sequence of a step: an estimate, as small as it seems.
    """

    step_s: float = 6.2e-3
    sequence_s: float = 20e-6
    context_token_s: float = 0.051e-6
    prefill_token_s: float = 32.5e-6
    attention_pair_s: float = 1.06e-9

    def prefill_s(self, begin: int, end: int) -> float:
        """Computing the tokens from position `begin` to `end` of a prompt whose first `begin` are there."""
        tokens = end - begin
        return tokens * (self.prefill_token_s + self.attention_pair_s * (begin + end) / 2)

    def decode_s(self, sequences: int, context_tokens: int) -> float:
        """One token for each of `sequences` that have `context_tokens` in all."""
        return self.step_s + sequences * self.sequence_s + context_tokens * self.context_token_s
