# SPDX-License-Identifier: Apache-2.0
"""The examples in the documentation are run as they stand there."""

import re
from pathlib import Path

import pytest

from vllm_gateway.configuration.loading import load_settings
from vllm_gateway.scheduling import InstanceView, Outcome, RequestInfo, load_strategy, make_strategy

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_strategy_written_from_scratch_works(tmp_path: Path) -> None:
    source = blocks(ROOT / "docs/strategies.md", "python")[0]
    (tmp_path / "fewest_served.py").write_text(source, encoding="utf-8")
    strategy = load_strategy("fewest_served", tmp_path)()
    views = [InstanceView(f"i{total}", f"a_{total}", "a", "127.0.0.1", 1, 8, total=total) for total in (5, 2, 9)]
    request = RequestInfo("r", "a", "/v1/chat/completions", False, b"{}")
    assert strategy.choose(request, views) is views[1]
    strategy.finished(request, views[1], Outcome.BROKEN)  # type: ignore[attr-defined]
    assert strategy.broken == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["sticky", "idlest"])
def test_the_other_strategies_in_the_page_work(tmp_path: Path, name: str) -> None:
    (source,) = [text for text in blocks(ROOT / "docs/strategies.md", "python") if f'name = "{name}"' in text]
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    strategy = make_strategy(name, tmp_path)
    views = [InstanceView(f"i{n}", f"a_{n}", "a", "127.0.0.1", 1, 8, in_flight=n) for n in range(3)]
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
    (tmp_path / "fewest_served.py").write_text(blocks(ROOT / "docs/strategies.md", "python")[0], encoding="utf-8")
    file.write_text(text.replace("/etc/vllm-gateway/strategies", str(tmp_path)), encoding="utf-8")
    assert load_settings(file, {}, {}).models


def links() -> list[tuple[Path, str]]:
    return [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "link"), links())
def test_links_between_pages_lead_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).exists()
