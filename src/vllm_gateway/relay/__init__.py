# SPDX-License-Identifier: Apache-2.0
"""Carries one request to an instance and its reply back, byte for byte and without a copy more than needed.

    client <-> whoever read the request -> Client -> Relay.carry -> Connection (pooled) <-> instance
       ^                                                                |
       '----------------- the reply's bytes, as they are read ----------'

Usage, in the handler of a `web.Server(handler, handler_cancellation=True, auto_decompress=False)`:

    client = AiohttpClient(request, request.rel_url.raw_path_qs)
    try:
        carried = await relay.carry(client, Address("127.0.0.1", 8001), await request.read(), Instructions(limits))
    except UpstreamFailed as failure:   # not a byte has reached the client: try another instance, or say so
        ...
    return CarriedResponse(request, carried, lambda: relay.settle(client, carried))

What it promises:
- A reply is the instance's own, or it ends without its proper end: a client never takes a cut reply for a whole one.
  A reply that only the connection's end delimits is passed as such and closes the client's connection; when it is
  cut, the client's connection is reset.
- A client that leaves closes the connection to the instance at once.
- What an engine says of itself (its own address, its server, cookies, trailers) stays here, and so do its redirects.
- A slow client costs `client_buffer_bytes` and one read of memory: the instance is not read meanwhile.
- A connection is used again only if nothing of the exchange before is left on it; one that proves to have been closed
  while it was idle is replaced by a fresh one, and that counts as no failure.
"""

from vllm_gateway.relay.aiohttp_client import AiohttpClient, CarriedResponse
from vllm_gateway.relay.client import Client
from vllm_gateway.relay.heads import OwnHeaders, own_headers
from vllm_gateway.relay.relay import Relay
from vllm_gateway.relay.renaming import Rename
from vllm_gateway.relay.stream import ClientStream
from vllm_gateway.relay.types import Carried, ClientGone, HasGivenUp, Instructions, Limits, NoStream, UpstreamFailed

__all__ = [
    "AiohttpClient",
    "Carried",
    "CarriedResponse",
    "Client",
    "ClientGone",
    "ClientStream",
    "HasGivenUp",
    "Instructions",
    "Limits",
    "NoStream",
    "OwnHeaders",
    "Relay",
    "Rename",
    "UpstreamFailed",
    "own_headers",
]
