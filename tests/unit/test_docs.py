# SPDX-License-Identifier: Apache-2.0
"""The examples in the documentation are run as they stand there, and what it names exists: pages, settings, errors."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_gateway.api.errors import KINDS
from vllm_gateway.configuration.loading import load_settings
from vllm_gateway.scheduling import Address, InstanceView, Outcome, RequestInfo, load_strategy, make_strategy

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
ALL_PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(
        page
        for folder in ("docs", "tests", "bench", "src", "strategies")
        for page in sorted((ROOT / folder).rglob("*.md"))
    ),
]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """Without what stands between fences."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


# --- Examples


def test_the_strategy_written_from_scratch_works(tmp_path: Path) -> None:
    source = blocks(DOCS / "strategies.md", "python")[0]
    (tmp_path / "fewest_served.py").write_text(source, encoding="utf-8")
    strategy = load_strategy("fewest_served", tmp_path)()
    views = [
        InstanceView(f"i{total}", f"a_{total}", "a", Address("127.0.0.1", 1), 8, total=total) for total in (5, 2, 9)
    ]
    request = RequestInfo("r", "a", "/v1/chat/completions", False, b"{}")
    assert strategy.choose(request, views) is views[1]
    strategy.finished(request, views[1], Outcome.BROKEN)  # type: ignore[attr-defined]
    assert strategy.broken == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["sticky", "idlest"])
def test_the_other_strategies_in_the_page_work(tmp_path: Path, name: str) -> None:
    (source,) = [text for text in blocks(DOCS / "strategies.md", "python") if f'name = "{name}"' in text]
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    strategy = make_strategy(name, tmp_path)
    views = [InstanceView(f"i{n}", f"a_{n}", "a", Address("127.0.0.1", 1), 8, in_flight=n) for n in range(3)]
    request = RequestInfo("r", "a", "/v1/chat/completions", False, b"{}")
    assert strategy.choose(request, views) in views


CONFIGURATIONS = [
    pytest.param(text, id=f"{page.name}-{index}")
    for page in PAGES
    for index, text in enumerate(blocks(page, "yaml"))
    if "models:" in text
]


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_the_configurations_in_the_pages_are_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    (tmp_path / "fewest_served.py").write_text(blocks(DOCS / "strategies.md", "python")[0], encoding="utf-8")
    file.write_text(text.replace("/etc/vllm-gateway/strategies", str(tmp_path)), encoding="utf-8")
    assert load_settings(file, {}, {}).models


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_in_the_pages_is_json(page: Path) -> None:
    for text in blocks(page, "json"):
        assert json.loads(text)


def test_the_service_has_longer_to_stop_than_requests_have_to_finish() -> None:
    service = text_of(ROOT / "deploy/systemd/vllm-gateway.service")
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", service, re.MULTILINE)
    assert int(stop_s) > load_settings(None, {}).server.drain_timeout_s


# --- Links


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_page_and_a_heading_in_it(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_index_lists_every_page_once() -> None:
    index = DOCS / "README.md"
    listed = [link for link in links(index) if not link.startswith("../")]
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page != index)


def test_pages_that_code_and_configurations_name_exist() -> None:
    folders = ("src", "strategies", "config", "bench", "tests", "deploy")
    files = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "compose.yaml"]
    files += [
        file
        for folder in folders
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".py", ".yaml", ".yml", ".json", ".md", ".toml"}
    ]
    for file in files:
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", text_of(file)):
            assert (ROOT / name).exists(), f"{file}: {name}"


# --- What is named exists


def settings() -> Iterator[str]:
    """`server.host` and so on, by the schema."""
    schema = json.loads(text_of(ROOT / "config/schema.json"))

    def walk(section: dict[str, Any], path: str) -> Iterator[str]:
        for name, shape in section["properties"].items():
            yield path + name
            for one in (shape, *shape.get("anyOf", [])):  # anyOf: it may be left out
                if "$ref" in one:
                    yield from walk(schema["$defs"][one["$ref"].rpartition("/")[2]], f"{path}{name}.")

    return walk(schema, "")


def test_settings_that_pages_name_exist() -> None:
    known = set(settings())
    sections = "|".join(sorted({name.partition(".")[0] for name in known if "." in name}))
    for page in PAGES:
        for name in re.findall(rf"`((?:{sections})\.(?!py`)[a-z_.]+)[`:]", prose(page)):
            assert name in known, f"{page.name}: {name}"


def test_every_error_is_explained_to_clients() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (`.+?) \|", text_of(DOCS / "clients.md"), re.MULTILINE)
    explained = {(code, int(status)) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert explained == {(code, kind.status) for code, kind in KINDS.items()}


def test_metrics_that_pages_name_exist() -> None:
    source = "".join(text_of(file) for file in (ROOT / "src").rglob("*.py"))
    known = [re.sub(r"\{\w+\}", r"\\w+", name) for name in re.findall(r'"(vllm_gateway_[\w{}]+)"', source)]
    for page in PAGES:
        for name in re.findall(r"`(vllm_gateway_\w*[a-z])`", text_of(page)):
            assert any(re.fullmatch(f"{one}(_total)?", name) for one in known), f"{page.name}: {name}"


def test_targets_of_make_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for page in ALL_PAGES:
        for name in re.findall(r"(?:`|^)make ([a-z-]+)", text_of(page), re.MULTILINE):
            assert name in targets, f"{page.name}: make {name}"
