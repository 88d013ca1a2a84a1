# SPDX-License-Identifier: Apache-2.0
"""A small request of the gateway's own: whether an engine still works, whatever its health check says."""

import asyncio
import io
import wave

import msgspec

from vllm_gateway.fleet.engines.calls import CallFailed, CannotCall, call
from vllm_gateway.routing import Address

_JSON = (
    ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
    ("/v1/embeddings", {"input": "a"}),
    ("/pooling", {"input": "a"}),
    ("/classify", {"input": "a"}),
)
_BOUNDARY = "vllm-gateway-trial"
_NO_SUCH_THING = range(400, 500)  # for this model; also 501
_SAMPLES_PER_S = 16_000


class CannotTell(Exception):
    """The engine takes none of these requests, or none can be sent."""


async def failure(address: Address, model: str, limit_s: float) -> str | None:
    """Why the engine did not answer within the limit; None: it works. Raises CannotTell."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + limit_s
    for path, body, content_type in _requests(model):
        left_s = max(ends - loop.time(), 0.01)
        try:
            answer = await call(address, path, limit_s=left_s, method="POST", body=body, content_type=content_type)
        except CannotCall as error:
            raise CannotTell(str(error)) from None
        except CallFailed as error:
            return f"{path}: {error}"
        if answer.status == 200:
            return None
        if answer.status not in _NO_SUCH_THING and answer.status != 501:
            return f"{path}: status {answer.status}"
    raise CannotTell("it takes none of the gateway's own requests")


def _requests(model: str) -> list[tuple[str, bytes, str]]:
    """Path, body and its type, for every kind of model; the others refuse them at once."""
    found = [(path, msgspec.json.encode({"model": model, **fields}), "application/json") for path, fields in _JSON]
    form = f"multipart/form-data; boundary={_BOUNDARY}"
    return [*found, ("/v1/audio/transcriptions", _form(model), form)]


def _form(model: str) -> bytes:
    head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    parts = f'{head}"model"\r\n\r\n{model}\r\n{head}"file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    return parts.encode() + _silence() + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _silence() -> bytes:
    """A tenth of a second."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(_SAMPLES_PER_S)
        sound.writeframes(bytes(2 * _SAMPLES_PER_S // 10))
    return file.getvalue()
