# SPDX-License-Identifier: Apache-2.0
"""The lab's images: tagged by a hash of what they are made from, so that they are made again only when that changes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.lab import base_image
from tests.lab.docker_api import DockerApi

_HERE = Path(__file__).parent
_SOURCE = _HERE.parents[1] / "src"
_BASE_RECIPE = Path(base_image.__file__)
_ENGINE_RECIPE = _HERE / "engine.Dockerfile"
_YOUNG_S = 3600


def make_missing(docker: DockerApi) -> str:
    """The name of the engine's image."""
    base_tag = _hash([_BASE_RECIPE])
    base = f"lab/base:{base_tag}"
    sources = _engine_sources()
    engine = f"lab/vllm:{_hash([_BASE_RECIPE, _ENGINE_RECIPE, *sources])}"
    if not docker.exists(f"/images/{base}/json"):
        _import_base(docker, base_tag)
    if not docker.exists(f"/images/{engine}/json"):
        query = {"t": engine, "buildargs": json.dumps({"BASE": base}), "forcerm": "true"}
        docker.send_tar("/build", _build_context(sources), query)
        _remove_older(docker, keep=(base, engine))
    return engine


def _import_base(docker: DockerApi, tag: str) -> None:
    changes = "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1"
    with base_image.archive().open("rb") as archive:
        docker.send_tar("/images/create", archive, {"fromSrc": "-", "repo": "lab/base", "tag": tag, "changes": changes})


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
    """Not the young ones: a test run may have begun with one of them just before a source changed."""
    for image in docker.get("/images/json"):
        if time.time() - image["Created"] < _YOUNG_S:
            continue
        for name in image["RepoTags"] or []:
            if name.startswith("lab/") and name not in keep:
                docker.delete(f"/images/{name}")


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(_HERE.parents[1])}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
