# SPDX-License-Identifier: Apache-2.0
"""Imports run one way; this test holds the design's directions by reading the imports of every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "vllm_gateway"
ALLOWED = {
    "cli": {
        "allocator.nvml",
        "allocator.probe",
        "files",
        "service",
        "control",
        "configuration",
        "replay",
        "scheduling",
        "telemetry",
    },
    "service": {
        "app",
        "files",
        "api",
        "fleet",
        "allocator.probe",
        "configuration",
        "scheduling",
        "simulator",
        "telemetry",
        "routing",
    },
    "app": {
        "api",
        "bodies.limits",
        "control",
        "fleet",
        "allocator",
        "relay",
        "scheduling",
        "configuration",
        "telemetry",
        "routing",
    },
    "control": {"api", "fleet", "allocator.types", "scheduling", "configuration", "telemetry"},
    "api": {
        "bodies",
        "scheduling",
        "relay",
        "routing",
        "configuration.settings",
        "configuration.values",
        "configuration.api_keys",
        "streams",
        "telemetry",
    },
    "bodies": set[str](),
    "scheduling": {"bodies", "files", "routing", "telemetry", "configuration.settings"},
    "relay": {"bodies.payload", "telemetry", "routing"},
    "streams": {"bodies"},
    "fleet": {
        "allocator",
        "files",
        "routing",
        "relay.framing",
        "relay.heads",
        "relay.upstream",
        "configuration.settings",
        "telemetry",
    },
    "allocator": {"configuration.settings", "files", "telemetry", "simulator.gpu_memory"},
    "telemetry": {"configuration.settings"},
    "simulator": set[str](),
    "replay": {"bodies.words", "files", "scheduling"},
    "strategies": {"scheduling"},
    "configuration": {"files", "scheduling", "telemetry"},
    "files": set[str](),
    "routing": set[str](),
    "__init__": set[str](),
}


def modules() -> list[Path]:
    return sorted(path for folder in (PACKAGE, ROOT / "strategies") for path in folder.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The part of the house that a file belongs to."""
    if path.is_relative_to(ROOT / "strategies"):
        return "strategies"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path, text: str) -> set[str]:
    """The modules of the house that a file imports, without the package's name: `telemetry.events`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level and path.is_relative_to(PACKAGE):
                parents = ("vllm_gateway", *path.relative_to(PACKAGE).parts)[: -node.level]
                module = ".".join([*parents, module]).rstrip(".")
            found.update(f"{module}.{alias.name}" for alias in node.names)
    ours = {name.removeprefix("vllm_gateway.") for name in found if name.startswith("vllm_gateway.")}
    return (ours - {"__version__"}) | {name for name in found if name.split(".")[0] == "strategies"}


def wrong_imports(path: Path, text: str) -> list[str]:
    unit = unit_of(path)
    found = imports_of(path, text)
    allowed = {unit, *ALLOWED[unit]}
    return sorted(name for name in found if not any(f"{name}.".startswith(f"{part}.") for part in allowed))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_it_may(path: Path) -> None:
    assert wrong_imports(path, path.read_text("utf-8")) == []


def test_every_part_of_the_house_has_its_directions() -> None:
    assert {unit_of(path) for path in modules()} == set(ALLOWED)


def test_the_top_holds_rooms_and_what_joins_them() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "app.py", "routing.py"}


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("telemetry/x.py", "from vllm_gateway.fleet import registry"),
        ("relay/x.py", "from vllm_gateway.configuration import settings"),
        ("fleet/runtimes/x.py", "from ...api import routes"),
        ("api/x.py", "import vllm_gateway.app"),
        ("allocator/x.py", "from vllm_gateway.simulator import http_server"),
        ("scheduling/x.py", "from strategies import round_robin"),
        ("cli/status.py", "from vllm_gateway import app"),
    ],
)
def test_a_wrong_direction_is_seen(place: str, text: str) -> None:
    assert wrong_imports(PACKAGE / place, text)
