# SPDX-License-Identifier: Apache-2.0
"""A registry with one image on loopback: enough of the distribution API for Docker to pull, and to wait."""

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


class Registry:
    """Holds blobs by digest, and one manifest. While `goes_on` is not set, half of the layer comes and no more."""

    def __init__(self, content: bytes) -> None:
        self.name = ""  # the full one, under which Docker can pull the image
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.pulls = 0  # how often the layer was asked for
        self._blobs: dict[str, bytes] = {}
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            member = tarfile.TarInfo("content")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        layer = tar.getvalue()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/content"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
            "history": [{"created_by": "test"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._blob(json.dumps(config).encode(), _CONFIG),
            "layers": [self._blob(gzip.compress(layer, compresslevel=0), _LAYER)],
        }
        self._manifest = json.dumps(manifest).encode()

    def _blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = _digest(data)
        self._blobs[digest] = data
        return {"mediaType": media_type, "size": len(data), "digest": digest}

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        kind, reference = request.path.rstrip("/").rsplit("/", 2)[-2:]
        if kind == "manifests":
            headers = {"Content-Type": _MANIFEST, "Docker-Content-Digest": _digest(self._manifest)}
            return web.Response(body=self._manifest, headers=headers)
        if kind == "blobs" and reference in self._blobs:
            return await self._give(request, self._blobs[reference])
        return web.Response(status=200 if request.path == "/v2/" else 404)

    async def _give(self, request: web.BaseRequest, blob: bytes) -> web.StreamResponse:
        is_layer = blob is max(self._blobs.values(), key=len)
        self.pulls += is_layer
        reply = web.StreamResponse(headers={"Content-Length": str(len(blob))})
        await reply.prepare(request)
        await reply.write(blob[: len(blob) // 2])
        if is_layer:
            await self.goes_on.wait()
        await reply.write(blob[len(blob) // 2 :])
        return reply


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@asynccontextmanager
async def serving_image(name: str, content: bytes) -> AsyncIterator[Registry]:
    """Docker can pull it while the block lasts."""
    registry = Registry(content)
    runner = web.ServerRunner(web.Server(registry.answer))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        registry.name = f"127.0.0.1:{runner.addresses[0][1]}/{name}"
        yield registry
    finally:
        registry.goes_on.set()
        await runner.cleanup()
