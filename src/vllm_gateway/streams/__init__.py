# SPDX-License-Identifier: Apache-2.0
"""What has been said in a stream, and how another instance goes on with it. Bytes in, bytes out; no I/O, no clock."""

from vllm_gateway.streams.asked import Asked, Known, Resume, asked
from vllm_gateway.streams.continuation import next_step
from vllm_gateway.streams.sse import MAX_EVENT_BYTES, comment, event_of
from vllm_gateway.streams.steps import Ask, Finish, GiveUp, Told
from vllm_gateway.streams.tracker import Tracker
from vllm_gateway.streams.typed import TYPED, Typed

__all__ = [
    "MAX_EVENT_BYTES",
    "TYPED",
    "Ask",
    "Asked",
    "Finish",
    "GiveUp",
    "Known",
    "Resume",
    "Told",
    "Tracker",
    "Typed",
    "asked",
    "comment",
    "event_of",
    "next_step",
]
