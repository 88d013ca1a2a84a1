# SPDX-License-Identifier: Apache-2.0
"""The simulated engine: an OpenAI-compatible server that behaves like vLLM, GPU memory included, without a GPU.

It stands where a vLLM container would stand, in the demo and in the tests. Start it with vLLM's own arguments:

    python -m vllm_gateway.simulator --model demo/chat-4b --served-model-name chat --port 8101

It uses the standard library alone and nothing else of vllm_gateway, so that it also runs in an image that holds only
Python. What a real engine gets from its hardware and its model files comes from environment variables here:

| variable | default | meaning |
|---|---|---|
| `SIM_NAME` | the host's name | sent with each reply as `x-simulated-instance` |
| `SIM_LOAD_S` | 1 | time from the start to healthy |
| `SIM_PROFILE_SHARE` | 0.3 | the part of the load time in which memory is profiled |
| `SIM_STOP_S` | 0 | how long the process lingers after SIGTERM, its memory still held |
| `SIM_WAKE_S` | 0.1 | time to fall asleep and to wake up |
| `SIM_TOKENS_PER_S` | 200 | tokens a second of one sequence that runs alone |
| `SIM_BATCH_SLOWDOWN` | 0.02 | each further running sequence lengthens a step by this part |
| `SIM_PREFILL_TOKENS_PER_S` | 20000 | prompt tokens a second; tokens found in the prefix cache cost nothing |
| `SIM_TTFT_S` | 0 | added to the time to the first token of each request |
| `SIM_WEIGHTS_MIB` | by name: `4b` is 4e9 parameters of 2 bytes; else 2048 | weights, all GPUs together |
| `SIM_ACTIVATION_MIB` | 256 | peak activation, on each GPU |
| `SIM_CUDA_GRAPH_MIB` | 128 (0 with `--enforce-eager`) | CUDA graphs, on each GPU |
| `SIM_KV_MIB_PER_1K_TOKENS` | 32 | KV cache per 1024 tokens, all GPUs together |
| `SIM_START_CHECK_ALWAYS` | 0 | 1: demand utilization x total free at start also with `--kv-cache-memory-bytes` |
| `SIM_FAULTS` | none | comma separated `name[=value][*times]`, see `faults.py`; at run time `POST /sim/faults` |
| `SIMULATED_GPU_DIR` | `/run/simulated-gpus` | the simulated GPUs, see `gpu_memory.py`; absent: no memory is taken |

A model with `embed` in its name (or `--runner pooling`) serves /v1/embeddings alone, one with `whisper` in its name
/v1/audio/transcriptions; all others generate text. A request that sets `max_tokens` gets exactly that many tokens, one
that sets none 16 to 64. With VLLM_SERVER_DEV_MODE=1 there are /sleep, /wake_up, /pause and their like, as in vLLM, and
with VLLM_ENABLE_RESPONSES_API_STORE=1 responses are kept.

The answer to a prompt is a function of its token ids alone, the same on every instance (see `tokenizer.py`).
"""
