# SPDX-License-Identifier: Apache-2.0
"""PARALLEL_MODELS_JSON: what it accepts, what it refuses and how it meets the config file."""

import io
import json
from pathlib import Path

import pytest

from vllm_gateway.configuration.loading import ConfigError, load_parallel_models_config, load_settings
from vllm_gateway.configuration.settings import Log
from vllm_gateway.telemetry import log

DEFAULT = {"gemma3-4B": 2}
FILE = """
models:
  gemma3-4B: {repository: google/gemma-3-4b-it, instances: 3}
  other: {repository: some/other}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, DEFAULT),
        ("", DEFAULT),
        ("  ", DEFAULT),
        ("''", DEFAULT),
        ("{}", DEFAULT),
        ('{"gemma3-4B": 2}', DEFAULT),
        ('{"gemma3-4B": 2, "qwen2.5": 1}', {"gemma3-4B": 2, "qwen2.5": 1}),
        ("'{\"a\": 4}'", {"a": 4}),
        ('"{"a": 4}"', {"a": 4}),
        ('"{\\"a\\": 4}"', {"a": 4}),
        ('"\'"', None),
        (' \n{"a":\n1}\n ', {"a": 1}),
        ('{"Modèle ü": 1}', {"Modèle ü": 1}),
        ('{"a": 64}', {"a": 64}),
    ],
)
def test_accepted_forms(text: str | None, expected: dict[str, int] | None) -> None:
    environ = {} if text is None else {"PARALLEL_MODELS_JSON": text}
    if expected is None:
        with pytest.raises(ConfigError):
            load_parallel_models_config(environ)
    else:
        assert load_parallel_models_config(environ) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{", "not valid JSON"),
        ("{'a': 1}", "{'a': 1}"),
        ("gemma3-4B", "gemma3-4B"),
        ('["gemma3-4B"]', "must be a JSON object"),
        ("[]", "must be a JSON object"),
        ("2", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ('{"a": 0}', "got 0"),
        ('{"a": -1}', "got -1"),
        ('{"a": 65}', "got 65"),
        ('{"a": true}', "got true"),
        ('{"a": 2.0}', "got 2.0"),
        ('{"a": "2"}', 'got "2"'),
        ('{"a": null}', "got null"),
        ('{"a": [1]}', "got [1]"),
        ('{"a": NaN}', "got NaN"),
        ('{"": 1}', "name is empty"),
        ('{"a": 1, "a": 2}', "'a' twice"),
    ],
)
def test_refused_forms(text: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_parallel_models_config({"PARALLEL_MODELS_JSON": text})
    (problem,) = caught.value.problems
    assert problem.place == "PARALLEL_MODELS_JSON"
    assert shown in problem.message
    with pytest.raises(ConfigError, match="PARALLEL_MODELS_JSON"):
        load_settings(None, {"PARALLEL_MODELS_JSON": text})


def test_every_wrong_number_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_parallel_models_config({"PARALLEL_MODELS_JSON": '{"a": 0, "b": true, "c": 1}'})
    assert len(caught.value.problems) == 2
    assert all('{"gemma3-4B": 2, "qwen2.5": 1}' in problem.message for problem in caught.value.problems)


def test_the_result_is_logged() -> None:
    out = io.StringIO()
    log.configure(Log(format="json"), out, strict=True)
    load_parallel_models_config({"PARALLEL_MODELS_JSON": '{"logged": 1}'})
    assert log.flush()
    log.shutdown()
    line = json.loads(out.getvalue().splitlines()[-1])
    assert (line["event"], line["models"]) == ("parallel_models_config", {"logged": 1})


def test_it_reads_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLEL_MODELS_JSON", '{"a": 3}')
    assert load_parallel_models_config() == {"a": 3}
    monkeypatch.delenv("PARALLEL_MODELS_JSON")
    assert load_parallel_models_config() == DEFAULT


def test_the_environment_wins_over_what_is_configured() -> None:
    assert load_parallel_models_config({"PARALLEL_MODELS_JSON": '{"a": 3}'}, {"a": 1, "b": 2}) == {"a": 3, "b": 2}


def counts(file: Path | None, **environ: str) -> dict[str, int]:
    return {name: model.instances for name, model in load_settings(file, environ).models.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(FILE, "utf-8")
    return path


def test_the_default_holds_where_nothing_names_a_model() -> None:
    settings = load_settings(None, {})
    assert {name: model.instances for name, model in settings.models.items()} == DEFAULT
    assert settings.models["gemma3-4B"].repository == "google/gemma-3-4b-it"


def test_the_file_takes_the_place_of_the_default(file: Path) -> None:
    assert counts(file) == {"gemma3-4B": 3, "other": 1}


def test_the_environment_overrides_the_file(file: Path) -> None:
    assert counts(file, PARALLEL_MODELS_JSON='{"other": 5}') == {"gemma3-4B": 3, "other": 5}


def test_allowed_models_give_names_a_meaning() -> None:
    found = counts(None, ALLOWED_MODELS_JSON='{"x": "org/x", "y": "org/y"}', PARALLEL_MODELS_JSON='{"x": 2}')
    assert found == {"x": 2, "y": 1}


def test_the_name_of_a_built_in_model_needs_no_meaning(file: Path) -> None:
    assert counts(None, PARALLEL_MODELS_JSON='{"gemma3-4B": 1}') == {"gemma3-4B": 1}


def test_a_name_without_a_meaning_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="nothing says how to serve 'x': add it to ALLOWED_MODELS_JSON or models:"):
        counts(file, PARALLEL_MODELS_JSON='{"x": 1}')
