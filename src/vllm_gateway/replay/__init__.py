# SPDX-License-Identifier: Apache-2.0
"""How would this traffic fare with that strategy? A discrete-event simulation of N engines under the real strategies.

Pure but for reading the trace: no asyncio, no clock, no network. `trace` reads the traffic, `engine` and `cache` are
one simulated vLLM, `timing` says how long its steps take, `driver` hands requests out as the gateway does, and `report`
counts.
"""
