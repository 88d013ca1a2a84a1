# SPDX-License-Identifier: Apache-2.0
"""Reads the config file, and remembers the line of each key."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vllm_gateway.configuration.draft import Draft, Keys, Problem
from vllm_gateway.files.plain import read_plain

_MOST_BYTES = 1 << 20
_MAX_DEPTH = 30
_MAX_NODES = 100_000  # a few aliases of aliases stand for millions

_WRITTEN_PLAINLY = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}


def read_file(draft: Draft, path: Path) -> None:
    try:
        text = read_plain(path, _MOST_BYTES).decode()
    except OSError as error:
        draft.problems.append(Problem(str(path), f"cannot be read ({error.strerror}): name a file that is there"))
        return
    except UnicodeDecodeError as error:
        draft.problems.append(Problem(str(path), f"is not UTF-8 text (byte {error.start})"))
        return
    try:
        value = _parse(draft, path, text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        draft.problems.append(Problem(place, f"not valid YAML: {error.problem or error.context}"))
        return
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        draft.problems.append(Problem(str(path), f"not valid YAML: {' '.join(str(error).split())}"))
        return
    if isinstance(value, dict):
        draft.data = value
    elif value is not None:
        draft.problems.append(Problem(f"{path}:1", "must be settings of the form `name: value`"))


def _parse(draft: Draft, path: Path, text: str) -> Any:
    """Raises YAMLError, ValueError, RecursionError."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        return _Reader(draft, path, loader).read(node, ()) if node is not None else {}
    finally:
        loader.dispose()


@dataclass(slots=True)
class _Reader:
    """Turns YAML nodes into plain data and remembers the line of each key."""

    draft: Draft
    path: Path
    loader: yaml.SafeLoader
    nodes: int = 0

    def read(self, node: yaml.Node, keys: Keys) -> Any:
        self.draft.places.setdefault(keys, f"{self.path}:{node.start_mark.line + 1}")
        self.nodes += 1
        if len(keys) > _MAX_DEPTH or self.nodes > _MAX_NODES:
            raise yaml.MarkedYAMLError(problem="nested too deeply, or too large", problem_mark=node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*keys, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, keys)
        if _is_text(keys) and node.tag in _WRITTEN_PLAINLY:
            return node.value
        return self.loader.construct_object(node)

    def _read_mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key.start_mark)
            if key.value in first:
                place = f"{self.path}:{line}: {'.'.join(map(str, (*keys, key.value)))}"
                message = f"said twice, first on line {first[key.value]}; keep one of them"
                self.draft.problems.append(Problem(place, message))
            first.setdefault(key.value, line)
        self.loader.flatten_mapping(node)
        result = {}
        for key, value in node.value:
            self.draft.places[(*keys, key.value)] = f"{self.path}:{key.start_mark.line + 1}"
            result[key.value] = self.read(value, (*keys, key.value))
        return result


def _is_text(keys: Keys) -> bool:
    """What engines are given as it is written: YAML would make 8 of 010, 3.1 of 3.10, 750 of 12:30."""
    return len(keys) == 4 and keys[0] == "models" and keys[2] in ("environment", "engine_arguments")
