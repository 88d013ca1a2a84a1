# SPDX-License-Identifier: Apache-2.0
"""The lab's images: tagged by a hash of what they are made from, so that they are made again only when that changes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.lab.base_image import import_base_image
from tests.lab.docker_api import DockerApi

_HERE = Path(__file__).parent
_SOURCE = _HERE.parents[1] / "src"
_BASE_RECIPE = _HERE / "base_image.py"
_ENGINE_RECIPE = _HERE / "engine.Dockerfile"


def make_missing(docker: DockerApi) -> str:
    """The name of the engine's image."""
    base_tag = _hash([_BASE_RECIPE])
    base = f"lab/base:{base_tag}"
    sources = _engine_sources()
    engine = f"lab/vllm:{_hash([_BASE_RECIPE, _ENGINE_RECIPE, *sources])}"
    if not docker.exists(f"/images/{base}/json"):
        import_base_image(docker, "lab/base", base_tag)
    if not docker.exists(f"/images/{engine}/json"):
        query = {"t": engine, "buildargs": json.dumps({"BASE": base}), "forcerm": "true"}
        docker.send_tar("/build", _build_context(sources), query)
        _remove_older(docker, keep=(base, engine))
    return engine


def _engine_sources() -> list[Path]:
    """The simulated engine needs the standard library and these files only."""
    package = _SOURCE / "vllm_gateway"
    simulator = (path for path in package.joinpath("simulator").rglob("*") if path.is_file())
    return [package / "__init__.py", *sorted(path for path in simulator if "__pycache__" not in path.parts)]


def _build_context(sources: Iterable[Path]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(_ENGINE_RECIPE, arcname="Dockerfile")
        for path in sources:
            tar.add(path, arcname=str(path.relative_to(_SOURCE)))
    return archive.getvalue()


def _remove_older(docker: DockerApi, *, keep: tuple[str, ...]) -> None:
    for image in docker.get("/images/json"):
        for name in image["RepoTags"] or []:
            if name.startswith("lab/") and name not in keep:
                docker.delete(f"/images/{name}")


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(_HERE.parents[1])}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
