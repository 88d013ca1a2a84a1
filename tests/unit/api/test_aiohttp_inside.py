# SPDX-License-Identifier: Apache-2.0
"""What the gateway uses of aiohttp's inside is all on the list that is checked at the start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

import vllm_gateway
from tests.waiting import LIMIT_S
from vllm_gateway.api import aiohttp_inside

SOURCES = Path(vllm_gateway.__file__).parent


class Uses(ast.NodeVisitor):
    """Private names of `self` that a class reads, and those that it makes."""

    def __init__(self, of: ast.ClassDef) -> None:
        self.read: set[str] = set()
        self.made = {one.name for one in of.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
        self.visit(of)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr.startswith("_"):
            (self.made if isinstance(node.ctx, ast.Store) else self.read).add(node.attr)
        self.generic_visit(node)


def uses_of(file: str, name: str) -> Uses:
    tree = ast.parse((SOURCES / file).read_text("utf-8"))
    return Uses(next(one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name))


@pytest.mark.parametrize(
    ("owner", "classes"),
    [
        (web.RequestHandler, [("api/aiohttp_lane.py", "_Connection")]),
        (web.Server, [("api/aiohttp_lane.py", "AiohttpServer"), ("api/front_door.py", "FrontDoor")]),
    ],
)
def test_all_that_is_used_is_listed(owner: type, classes: list[tuple[str, str]]) -> None:
    used: set[str] = set()
    for file, name in classes:
        found = uses_of(file, name)
        used |= found.read - found.made
    assert used == aiohttp_inside.USED[owner]


def test_another_aiohttp_is_refused_at_the_start_and_the_text_says_why() -> None:
    script = (
        "import sys; from aiohttp import web\n"
        "del web.RequestHandler._messages\n"
        "sys.argv[1:] = ['serve']\n"
        "from vllm_gateway.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1
    assert "has no RequestHandler._messages, which the gateway needs" in done.stderr.splitlines()[-1]
