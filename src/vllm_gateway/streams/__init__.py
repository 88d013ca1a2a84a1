# SPDX-License-Identifier: Apache-2.0
"""What has been said in a stream, and how another instance goes on with it. Bytes in, bytes out; no I/O, no clock."""

from vllm_gateway.streams.asked import Asked, Known, Resume, asked
from vllm_gateway.streams.continuation import Ask, Finish, GiveUp, Stream, next_step
from vllm_gateway.streams.sse import MAX_EVENT_BYTES, comment, event_of
from vllm_gateway.streams.tracker import Tracker

__all__ = [
    "MAX_EVENT_BYTES",
    "Ask",
    "Asked",
    "Finish",
    "GiveUp",
    "Known",
    "Resume",
    "Stream",
    "Tracker",
    "asked",
    "comment",
    "event_of",
    "next_step",
]
