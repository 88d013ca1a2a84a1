# SPDX-License-Identifier: Apache-2.0
"""Loading: which source wins, and that every problem is told at once, each with its place."""

import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S
from vllm_gateway.allocator.footprints import FootprintStore
from vllm_gateway.cli.check import check
from vllm_gateway.configuration.loading import ConfigError, Problem, load_settings, schema
from vllm_gateway.fleet.catalogue import Catalogue
from vllm_gateway.fleet.engine_keys import EngineKeys

CONFIG = Path(__file__).parents[3] / "config"


def problems(tmp_path: Path, text: str, **environ: str) -> list[str]:
    path = tmp_path / "g.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ)
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_command_line_before_environment_before_file_before_default(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("log: {level: error}\nidle_timeout_s: 5\nserver: {port: 1, host: localhost}\n", "utf-8")
    environ = {"LOG_LEVEL": "Warning", "VLLM_INACTIVITY_TIMEOUT": "7"}
    settings = load_settings(path, environ, {"log.level": "debug", "server.port": 2, "server.host": None})
    assert settings.log.level == "debug"
    assert settings.idle_timeout_s == 7
    assert (settings.server.host, settings.server.port) == ("localhost", 2)
    assert load_settings(path, environ).log.level == "warning"
    assert load_settings(path, {"LOG_LEVEL": ""}).log.level == "error"
    assert load_settings(None, {}).log.level == "info"


@pytest.mark.parametrize("left", ["", "# models:\n", "---\n", "log: {level: info}\n", "models:\n"])
def test_a_file_that_forgets_its_models_loses_none(left: str, tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("models: {a: {repository: x/y}, b: {repository: x/z}}\n", "utf-8")
    before = load_settings(path, {})
    path.write_text(left, "utf-8")
    with pytest.raises(ConfigError, match="a, b would be stopped"):
        load_settings(path, {}, None, before)
    path.write_text("models: {}\n", "utf-8")
    assert not load_settings(path, {}, None, before).models
    path.write_text("models: {c: {repository: x/y}}\n", "utf-8")
    assert list(load_settings(path, {}, None, before).models) == ["c"]
    assert list(load_settings(None, {}, None, load_settings(None, {})).models) == ["gemma3-4B"]


_AS_WRITTEN = ["010", "0x10", "3.10", "1_000", "12:30", "1e3", "0b1", "true", "yes", "No", "off", "2024-01-01", ".inf"]


def test_engines_are_given_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    pairs = "".join(f"      V{index}: {text}\n" for index, text in enumerate(_AS_WRITTEN))
    items = ", ".join(_AS_WRITTEN)
    path.write_text(
        f"models:\n  a: &a\n    repository: x/y\n    engine_arguments: [{items}]\n    environment: &e\n{pairs}"
        "  b:\n    repository: x/z\n    environment: {<<: *e, V0: '1.0'}\n"
    )
    models = load_settings(path, {}).models
    assert list(models["a"].environment.values()) == list(models["a"].engine_arguments) == _AS_WRITTEN
    assert models["b"].environment == {**models["a"].environment, "V0": "1.0"}
    (told,) = problems(tmp_path, "models:\n  a: {repository: x/y, environment: {A: }}\n")
    assert "models.a.environment.A" in told


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ("--pipeline-parallel-size, 2", 4),
        ("--pipeline_parallel_size=2", 4),
        ("-pp, 2, -dp, 3", 12),
        ("--data-parallel-size=3, -dp, 1", 2),
        ("--data-parallel-size=two", 0),
        ("-pp", 0),
        ("--nnodes, 2", 0),
    ],
)
def test_arguments_that_take_more_gpus_are_counted_or_refused(arguments: str, needed: int, tmp_path: Path) -> None:
    text = f"models:\n  a: {{repository: x/y, tensor_parallel_size: 2, engine_arguments: [{arguments}]}}\n"
    devices = ", ".join(["{name: g, memory_mib: 1}"] * max(needed, 1))
    text += f"gpus: {{source: static, devices: [{devices}]}}\n"
    if not needed:
        assert any("engine_arguments.0" in told for told in problems(tmp_path, text))
        return
    path = tmp_path / "g.yaml"
    path.write_text(text)
    settings = load_settings(path, {})
    catalogue = Catalogue(settings, FootprintStore(tmp_path / "f"), EngineKeys(tmp_path))
    assert catalogue.specs()["a"].gpu_count == needed
    fewer = text.replace(", {name: g, memory_mib: 1}", "", 1)
    assert any(f"an instance needs {needed} GPUs" in told for told in problems(tmp_path, fewer))


def test_a_bare_off_means_what_it_says(tmp_path: Path) -> None:
    """YAML reads it as false."""
    path = tmp_path / "g.yaml"
    path.write_text("models:\n  a: {repository: x/y, sleep: off, resume: off}\n", "utf-8")
    model = load_settings(path, {}).models["a"]
    assert (model.sleep, model.resume) == ("off", "off")


def test_engines_of_somebody_else_are_not_put_to_sleep(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, "models:\n  a: {endpoints: ['http://h:1'], sleep: level_1}\n")
    assert "`sleep` is for engines that the gateway starts" in told


def test_every_variable_reaches_its_setting() -> None:
    settings = load_settings(
        None,
        {
            "VLLM_GATEWAY_RUNTIME": "process",
            "VLLM_IMAGE": "img",
            "VLLM_CONTAINER_PREFIX": "pre",
            "VLLM_INACTIVITY_TIMEOUT": "0",
            "MEMORY_FOOTPRINT_FILE": "f.json",
            "HF_TOKEN": "t1",
            "HUGGING_FACE_HUB_TOKEN": "t2",
            "HOST_CACHE_DIR": "/cache",
            "DOCKER_NETWORK_NAME": "net",
            "VLLM_GATEWAY_API_KEYS": "a, b,",
            "VLLM_GATEWAY_OPEN": "true",
        },
    )
    docker = settings.docker
    assert (docker.image, docker.container_prefix, docker.cache_dir, docker.network) == ("img", "pre", "/cache", "net")
    assert (settings.idle_timeout_s, settings.memory_footprint_file, settings.hf_token) == (0, "f.json", "t1")
    assert settings.runtime == "process"
    assert (settings.server.api_keys, settings.server.open) == (("a", "b"), True)
    assert load_settings(None, {"HUGGING_FACE_HUB_TOKEN": "t2"}).hf_token == "t2"


@pytest.mark.parametrize("keys", [",", " , ,", "a\nb", "k\u00e9"])
def test_keys_that_no_client_can_send_open_nothing_and_are_not_shown(tmp_path: Path, keys: str) -> None:
    (told,) = problems(tmp_path, "log: {level: info}\n", VLLM_GATEWAY_API_KEYS=keys)
    assert told.startswith("VLLM_GATEWAY_API_KEYS: a key must not be empty")
    assert keys not in told.replace(", and", "").replace(", with", "")


@pytest.mark.parametrize("key", ["", " ", " x", "x ", "x\t", "x\ry", "x\ny", "x\0", "\x7f", "schl\u00fcssel"])
def test_nor_does_the_file(tmp_path: Path, key: str) -> None:
    (told,) = problems(tmp_path, f"server:\n  api_keys: [good, {json.dumps(key)}]\n")
    assert told.startswith("g.yaml:2: server.api_keys.1: a key must not be empty")
    assert "good" not in told


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("{key: sesame}", "api_keys.1.name: is missing"),
        ("{name: a b, key: sesame}", "api_keys.1.name: must match"),
        ("{name: a}", "api_keys.1: give one of `key`, `key_sha256` and `key_file`"),
        ("{name: a, key: sesame, key_file: f}", "api_keys.1: give one of"),
        ("{name: a, key: ' sesame'}", "api_keys.1.key: a key must not be empty, and"),
        ("{name: a, key_sha256: sesame}", "api_keys.1.key_sha256: a SHA-256 is 64 hexadecimal digits"),
        ("{name: a, key: sesame, role: root}", "api_keys.1.role: must be 'inference', 'metrics', 'viewer' or 'admin'"),
        ("{name: a, kee: sesame}", "api_keys.1.kee: unknown setting 'kee'; did you mean 'key'?"),
        ("{name: a, key_file: /nowhere}", "api_keys.1: key_file: /nowhere cannot be read (No such file or directory)"),
        (
            "{name: a, key_file: /dev/zero}",
            "api_keys.1: key_file: /dev/zero cannot be read (it is a pipe or a device, not a plain file)",
        ),
        (
            "{name: a, key_file: /usr/bin/env}",
            "api_keys.1: key_file: /usr/bin/env cannot be read (it is larger than 4096 bytes)",
        ),
        ("{name: a, key: open}", "api_keys.1: the same key stands before it"),
        ("7", "api_keys.1: must be text; put it in quotes"),
    ],
)
def test_keys_with_roles_that_are_wrong_are_told_and_not_shown(tmp_path: Path, key: str, problem: str) -> None:
    found = problems(tmp_path, f"server:\n  api_keys: [open, {key}]\n")
    assert any(told.startswith(f"g.yaml:2: server.{problem}") for told in found), found
    assert not any("sesame" in told or "; got" in told for told in found)


def test_a_name_is_one_keys_alone(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, "server: {api_keys: [{name: a, key: k1}, {name: a, key: k2}]}\n")
    assert told.startswith("g.yaml:1: server.api_keys.1: 'a' is the name of a key before it")


def test_check_shows_whose_keys_there_are_and_advises_against_those_that_may_do_everything(tmp_path: Path) -> None:
    file, out = tmp_path / "g.yaml", io.StringIO()
    file.write_text("server: {api_keys: [sesame, {name: chat, key: k1}, {name: ops, role: admin, key: k2}]}\n")
    assert check(file, {}, out) == 0
    assert "\nkeys     chat (inference), ops (admin)\n" in out.getvalue()
    assert "\nadvice   server.api_keys: a key that is plain text may do everything" in out.getvalue()
    file.write_text("server: {api_keys: [{name: chat, key: k1}]}\n")
    out = io.StringIO()
    assert check(file, {}, out) == 0
    assert "advice" not in out.getvalue()


@pytest.mark.parametrize(
    "server",
    [
        "{}",
        "{host: 127.8.9.1}",
        "{host: '::1'}",
        "{host: '::ffff:127.0.0.1'}",
        "{host: LOCALHOST}",
        "{host: 0.0.0.0, api_keys: [k]}",
        "{host: 0.0.0.0, open: true}",
        "{host: '', open: true}",
    ],
)
def test_a_gateway_that_serves_this_machine_alone_or_was_told_otherwise(tmp_path: Path, server: str) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(f"server: {server}\n", "utf-8")
    load_settings(path, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "''", "'::'", "192.168.1.7", "gpu-box", "2001:db8::1"])
def test_a_gateway_without_keys_that_others_reach_names_the_line_to_add(tmp_path: Path, host: str) -> None:
    (told,) = problems(tmp_path, f"server:\n  host: {host}\n")
    assert told.startswith("g.yaml:2: server.host: without API keys the gateway serves this machine alone")
    assert "`server.api_keys`" in told
    assert "add the line `open: true` under `server:`" in told
    with pytest.raises(ConfigError, match=r"command line: server\.host: without API keys"):
        load_settings(None, {}, {"server.host": host.strip("'")})


@pytest.mark.parametrize(
    ("host", "own", "others"),
    [
        ("127.0.0.1", ["127.0.0.1", "localhost", "0.0.0.0"], ["127.0.0.2", "[::1]", "10.0.0.5", "gpu-box"]),
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2", "localhost"], ["[::1]", "192.0.2.1", "gpu-box"]),
        ("''", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "LOCALHOST"], ["192.0.2.1", "[2001:db8::1]"]),
        ("gpu-box", ["GPU-Box"], ["127.0.0.1", "localhost"]),
    ],
)
def test_an_endpoint_that_is_the_gateway_itself(tmp_path: Path, host: str, own: list[str], others: list[str]) -> None:
    server = f"server: {{host: {host}, port: 8123, open: true}}\n"
    endpoints = [f"http://{name}:8123" for name in own] + [f"http://{name}:8123" for name in others]
    endpoints += [f"http://{name}:8124" for name in own]
    told = problems(tmp_path, server + f"models:\n  m: {{endpoints: {json.dumps(endpoints)}}}\n")
    expected = [
        f"models.m.endpoints.{index}: http://{name}:8123 is this gateway itself" for index, name in enumerate(own)
    ]
    assert [problem.partition(" (`server`)")[0].partition(": ")[2] for problem in told] == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: {port: true}", "server.port: must be a number, not true or false; got true"),
        ("timeouts: {idle_s: false}", "timeouts.idle_s: must be a number, not true or false"),
        ("priorities: {normal: 0, high: true}", "priorities: must be a number, not true or false"),
        ("server: {max_buffered_mib: true}", "server.max_buffered_mib: must be a number, not true or false"),
        ("server: {host: a b}", "server.host: must be an address of this machine or a name"),
        ('server: {host: "a\\0b"}', "server.host: holds a NUL"),
        (
            "server: {host: ''}",
            "server.host: without API keys the gateway serves this machine alone, and an empty",
        ),
        ("process: {command: []}", "process.command: must not be empty"),
        ("process: {command: ['']}", "process.command.0: must not be empty"),
        ("models: {m: {endpoints: ['http://a:0']}}", "models.m.endpoints.0: an endpoint must be of the form"),
        (
            "models: {m: {endpoints: ['http://a:1', 'http://A:1/']}}",
            "models.m.endpoints.1: http://A:1/ stands before it",
        ),
        ("models: {m: {repository: --help}}", "models.m.repository: a repository or a path does not begin with -"),
        ("models: {m: {repository: a, environment: {A=B: x}}}", "models.m.environment.A=B: the name of a variable"),
        ("models: {m: {repository: a, environment: {'': x}}}", "models.m.environment.: the name of a variable"),
        ('models: {m: {repository: a, environment: {A: "b\\0c"}}}', "models.m.environment.A: holds a NUL"),
        ('models: {m: {repository: a, engine_arguments: ["b\\0c"]}}', "models.m.engine_arguments.0: holds a NUL"),
        ('state_dir: "b\\0c"', "state_dir: holds a NUL"),
    ],
)
def test_what_would_fail_at_the_start_or_be_something_else(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(tmp_path, text)[0].startswith(f"g.yaml:1: {problem}")


def test_all_problems_at_once_with_their_places(tmp_path: Path) -> None:
    text = "server:\n  prot: 9\n  port: abc\nmodels:\n  a:\n    repository: x\n    instances: 2.5\n"
    found = problems(tmp_path, text, VLLM_INACTIVITY_TIMEOUT="soon", PARALLEL_MODELS_JSON='{"x": 1}')
    assert "g.yaml:2: server.prot: unknown setting 'prot'; did you mean 'port'?" in found
    assert any(line.startswith("g.yaml:3: server.port: ") and '"abc"' in line for line in found)
    assert any(line.startswith("g.yaml:7: models.a.instances: ") and "2.5" in line for line in found)
    assert any(line.startswith("VLLM_INACTIVITY_TIMEOUT: ") for line in found)
    assert any(line.startswith("PARALLEL_MODELS_JSON: nothing says how to serve 'x'") for line in found)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [\n", "g.yaml:2: not valid YAML"),
        ("log:\n  level: info\n  level: error\n", "g.yaml:3: log.level: said twice, first on line 2"),
        ("- a\n", "g.yaml:1: must be settings"),
        ("just text", "g.yaml:1: must be settings"),
        ("? [a]\n: 1\n", "g.yaml:1: not valid YAML: a key must be plain text"),
        ("a: &a\n  b: *a\n", "g.yaml:1: not valid YAML"),
        ("a: !!python/object:os.system x\n", "g.yaml:1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "g.yaml:2: not valid YAML"),
        ("models: 3\n", "g.yaml:1: models: "),
        ("models:\n  a:\n", "g.yaml:2: models.a: "),
        ("models:\n  a: {}\n", "g.yaml:2: models.a: give either `repository`"),
        ("models:\n  a: {repository: x, endpoints: ['http://h:1']}\n", "g.yaml:2: models.a: give either `repository`"),
        ("models:\n  a:\n    endpoints: ['https://h:1']\n", "g.yaml:3: models.a.endpoints.0: an endpoint must be"),
        ("models:\n  a:\n    endpoints: ['http://h']\n", "g.yaml:3: models.a.endpoints.0: an endpoint must be"),
        ("models:\n  a:\n    endpoints: ['http://h:99999']\n", "g.yaml:3: models.a.endpoints.0: an endpoint must be"),
        ("models:\n  a:\n    endpoints: ['http://h:1']\n    image: i\n", "g.yaml:4: models.a.image: 'image' is for"),
        (
            "models:\n  a: {repository: x}\n  b: {repository: x, aliases: [a]}\n",
            "g.yaml:3: models.b.aliases.0: 'a' is already the name of a model",
        ),
        (
            "models:\n  a: {repository: x, aliases: [c]}\n  b: {repository: x, aliases: [c]}\n",
            "g.yaml:3: models.b.aliases.0: 'c' is already the name of 'a' (as an alias)",
        ),
        (
            "models:\n  a: {repository: x, aliases: [c]}\n  b: {repository: x, adapters: [c]}\n",
            "g.yaml:3: models.b.adapters.0: 'c' is already the name of 'a' (as an alias)",
        ),
        ("gpus: {source: static}\n", "g.yaml:1: gpus: `devices` belongs to"),
        ("idle_timeout_s: .inf\n", "g.yaml:1: idle_timeout_s: must be a finite number"),
        ("idle_timeout_s: 30m\n", 'g.yaml:1: idle_timeout_s: must be a number; got "30m"'),
        ("retry: {budget: 2}\n", "g.yaml:1: retry.budget: must be at most 1; got 2"),
        ("gpus: {source: static, devices: [{name: g}]}\n", "g.yaml:1: gpus.devices.0.memory_mib: is missing"),
        (
            "gpus: {source: static, devices: [{name: g, memory_mib: 1}]}\n"
            "models: {a: {repository: x, tensor_parallel_size: 2}}\n",
            "g.yaml:2: models.a.tensor_parallel_size: an instance needs 2 GPUs, and `gpus.devices` has 1",
        ),
        (
            "gpus: {source: static, except: [1], devices: [{name: g, memory_mib: 1}, {name: g, memory_mib: 1}]}\n"
            "models: {a: {repository: x, tensor_parallel_size: 2}}\n",
            "g.yaml:2: models.a.tensor_parallel_size: an instance needs 2 GPUs, and `gpus.devices` has 2, of which",
        ),
        (
            "gpus: {memory_mib: {0: 1}, source: simulated, devices: [{name: g, memory_mib: 1}]}\n",
            "g.yaml:1: gpus: `memo",
        ),
        (
            "gpus: {source: static, devices: [{name: g, memory_mib: 1, id: x}, {name: g, memory_mib: 1, id: x}]}\n",
            "g.yaml:1: gpus.devices.1.id: GPU 0 has the id 'x', too; give each its own",
        ),
        (
            "gpus: {source: static, devices: [{name: g, memory_mib: 1}, {name: g, memory_mib: 1, id: '0'}]}\n",
            "g.yaml:1: gpus.devices.1.id: GPU 0 has the id '0', too; give each its own",
        ),
        (
            "gpus: {source: static, only: [0, 7, GPU-no], devices: [{name: g, memory_mib: 1, id: x}]}\n",
            "g.yaml:1: gpus.only.1: there is no GPU '7'; there are: 0 (x)",
        ),
        (
            "gpus: {source: simulated, except: [GPU-sim-1], devices: [{name: g, memory_mib: 1}]}\n",
            "g.yaml:1: gpus.except.0: there is no GPU 'GPU-sim-1'; there are: 0 (GPU-sim-0)",
        ),
        ('models: {m: {repository: "a\\u001bc"}}', "g.yaml:1: models.m.repository: holds the control character U+001B"),
        (
            'models: {m: {repository: a, environment: {"A\\nB": x}}}',
            "g.yaml:1: models.m.environment.A\\u000aB: its name",
        ),
        ('models: {m: {repository: a, adapters: ["a\\u0085"]}}', "g.yaml:1: models.m.adapters.0: holds the control"),
        (
            'models: {m: {repository: a, image: "a\\nb"}}',
            "g.yaml:1: models.m.image: holds the control character U+000A",
        ),
        ('process: {command: ["a\\0"]}', "g.yaml:1: process.command.0: holds a NUL"),
        ('docker: {volumes: ["/a:/b\\0"]}', "g.yaml:1: docker.volumes.0: holds a NUL"),
        ("docker: {ipc: host, shm_mib: 64}\n", "g.yaml:1: docker: `shm_mib` needs `ipc: private`"),
        (
            "models: {a: {repository: x, engine_arguments: ['--max-model-len 8192']}}\n",
            "g.yaml:1: models.a.engine_arguments.0: an option and its value are two items of the list: [--max",
        ),
        (
            "server: {hosts: ['llm:8000']}\n",
            "g.yaml:1: server.hosts.0: a name of this machine has neither",
        ),
        ("server: {hosts: ['http://llm']}\n", "g.yaml:1: server.hosts.0: a name of this machine has neither"),
        ("server: {allowed_origins: [chat]}\n", "g.yaml:1: server.allowed_origins.0: an origin has a scheme"),
        ("server: {allowed_origins: ['null']}\n", "g.yaml:1: server.allowed_origins.0: an origin has a scheme"),
        ("server: {allowed_origins: ['http://a/']}\n", "g.yaml:1: server.allowed_origins.0: an origin has a scheme"),
        ("server: {trusted_proxies: [nginx]}\n", "g.yaml:1: server.trusted_proxies.0: 'nginx' does not appear to be"),
        (
            "server: {trusted_proxies: [10.0.0.1/8]}\n",
            "g.yaml:1: server.trusted_proxies.0: 10.0.0.1/8 has host",
        ),
        ("a: \0\n", "g.yaml: not valid YAML: unacceptable character #x0000"),
        ("runtime: podman\n", "g.yaml:1: runtime: must be 'docker' or 'process'"),
        ("log:\n", "g.yaml:1: log: must be settings of the form `name: value`"),
        ("process: {command: vllm serve}\n", "g.yaml:1: process.command: must be a list of the form [one, two]"),
        ("priorities: {high: 1}\n", "g.yaml:1: priorities: `normal` must be among them"),
        ("models: {'': {repository: x}}\n", "g.yaml:1: models.: the name of a model must not be empty"),
        ("models: {a: {repository: ''}}\n", "g.yaml:1: models.a.repository: must not be empty"),
        ("models: {a: {repository: x, environment: {A: [1]}}}\n", "g.yaml:1: models.a.environment.A: must be text"),
        (
            "models: {a: {repository: x, engine_arguments: [--tensor_parallel_size=2]}}\n",
            "g.yaml:1: models.a.engine_arguments.0: --tensor-parallel-size is given to the engine by the gateway; set",
        ),
        ("strategies_dir: /nowhere\nstrategy: mine\n", "g.yaml:1: strategies_dir: /nowhere is not a folder"),
        ("strategy: {name: chain}\n", "g.yaml:1: strategy: strategy 'chain' needs its option 'scorers'"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, problem: str) -> None:
    assert any(line.startswith(problem) for line in problems(tmp_path, text)), problems(tmp_path, text)


def test_arguments_may_have_lines_and_variables_no_odd_characters(tmp_path: Path) -> None:
    text = 'models: {m: {repository: a, engine_arguments: [--chat-template, "a\\n\\tb"], environment: {A: "b\\n"}}}'
    file = tmp_path / "g.yaml"
    file.write_text(text)
    assert load_settings(file, {}).models["m"].environment == {"A": "b\n"}
    environ = {"VLLM_IMAGE": "a\udcff", "ALLOWED_MODELS_JSON": '{"n": "b\\u0000c"}'}
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ)
    assert {str(problem)[:43] for problem in caught.value.problems} == {
        "VLLM_IMAGE: holds what is no character (not",
        "ALLOWED_MODELS_JSON: holds a NUL, which doe",
    }


def test_numbers_are_good_arguments(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("models: {a: {repository: x, engine_arguments: [--seed, 8], environment: {A: 0.5}}}\n", "utf-8")
    model = load_settings(path, {}).models["a"]
    assert (model.engine_arguments, model.environment) == (("--seed", "8"), {"A": "0.5"})


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "none.yaml", {})
    assert caught.value.problems[0].place.endswith("none.yaml")


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("# nothing\n", "utf-8")
    assert load_settings(path, {}) == load_settings(None, {})


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("models:\n  a: &a {repository: x, instances: 2}\n  b: {<<: *a, instances: 3}\n", "utf-8")
    assert [m.instances for m in load_settings(path, {}).models.values()] == [2, 3]


def test_aliases_of_aliases_do_not_stand_for_millions(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]" for a, b in pairwise("abcdefgh")]
    assert problems(tmp_path, "\n".join(lines))[0].startswith(
        "g.yaml:1: not valid YAML: nested too deeply, or too large"
    )


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    found = problems(tmp_path, "server: {api_keys: secret}\nhf_token: 12345\n")
    assert len(found) == 2
    assert not any("secret" in line or "12345" in line for line in found)


def test_a_mapping_that_the_file_gives_wrongly_and_the_environment_sets(tmp_path: Path) -> None:
    assert problems(tmp_path, "log: loud\n", LOG_LEVEL="info")[0].startswith("g.yaml:1: log: ")


@pytest.mark.parametrize("name", ["gateway.yaml", "demo.yaml"])
def test_the_examples_are_good(name: str) -> None:
    settings = load_settings(CONFIG / name, {})
    assert {name: model.instances for name, model in settings.models.items()} == {"gemma3-4B": 2, "qwen2.5": 1}
    assert (CONFIG / name).read_text("utf-8").startswith("# yaml-language-server: $schema=schema.json\n")


def test_the_models_of_the_demo_do_not_fit_at_once() -> None:
    settings = load_settings(CONFIG / "demo.yaml", {})
    footprints = {name: model.footprint_mib or 0 for name, model in settings.models.items()}
    room = [device.memory_mib - settings.gpus.margin_mib for device in settings.gpus.devices]
    assert len(room) == 2
    for mib in room:
        assert max(footprints.values()) <= mib < sum(footprints.values())
        assert mib < 2 * footprints["gemma3-4B"]


def test_the_schema_is_current() -> None:
    current = (CONFIG / "schema.json").read_text("utf-8")
    assert current == schema(), "run: python -m vllm_gateway.configuration > config/schema.json"


def test_the_schema_can_be_printed() -> None:
    command = [sys.executable, "-m", "vllm_gateway.configuration"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_S)
    assert done.stdout.decode() == schema()


def test_check_shows_what_would_run() -> None:
    out = io.StringIO()
    assert check(CONFIG / "demo.yaml", {"PARALLEL_MODELS_JSON": '{"qwen2.5": 7}'}, out) == 0
    text = out.getvalue()
    assert "http://127.0.0.1:8000" in text
    assert any(line.split() == ["qwen2.5", "7", "Qwen/Qwen2.5-7B-Instruct", "round_robin"] for line in text.split("\n"))


def test_check_names_no_runtime_where_none_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    file.write_text("models: {a: {endpoints: ['http://h:1', 'http://h:2']}}\n")
    out = io.StringIO()
    assert check(file, {}, out) == 0
    assert "http://h:1, http://h:2" in out.getvalue()
    assert "runtime" not in out.getvalue()


def test_check_shows_every_problem() -> None:
    out = io.StringIO()
    assert check(None, {"PARALLEL_MODELS_JSON": '{"a": 0}', "LOG_LEVEL": "loud"}, out) == 2
    assert out.getvalue().endswith("2 problems\n")


def test_a_problem_reads_as_one_line() -> None:
    assert str(Problem("a.yaml:1: x", "y")) == "a.yaml:1: x: y"


def test_a_strategy_and_its_options_are_checked_where_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "strategy:\n  name: peak_ewma\n  decay: 3\n"
        "models:\n  a:\n    repository: x/a\n    strategy: nobody\n  b:\n    repository: x/b\n    strategy: 3\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {})
    places = [str(problem).split(": ")[:2] for problem in caught.value.problems]
    assert places == [
        [f"{file}:3", "strategy.decay"],
        [f"{file}:7", "models.a.strategy"],
        [f"{file}:10", "models.b.strategy"],
    ], "all at once"
    assert "name a strategy, or give a mapping" in str(caught.value)
    assert "has no option 'decay'; it has: decay_s" in str(caught.value)


def test_nothing_is_withheld_until_something_else_is_mended(tmp_path: Path) -> None:
    text = (
        "queue_size: -1\nstrategies_dir: /nowhere\nserver: {host: 0.0.0.0}\nmodels:\n  bad: {}\n"
        "  a: {repository: x, strategy: {name: peak_ewma, decay_s: .nan}}\n"
        "  b: {repository: x, tensor_parallel_size: 3}\n"
        "gpus: {source: static, only: [7], devices: [{name: g, memory_mib: 1}]}\n"
    )
    found = problems(tmp_path, text)
    places = ["queue_size", "strategies_dir", "server.host", "models.bad", "models.a.strategy.decay_s"]
    for place in [*places, "models.b.tensor_parallel_size", "gpus.only.0"]:
        assert any(f": {place}: " in line for line in found), (place, found)


def test_each_part_of_a_chain_is_told_where_it_stands(tmp_path: Path) -> None:
    text = (
        "strategy:\n  name: chain\n  scorers:\n    - {strategy: {name: peak_ewma, decay_s: 0}}\n"
        "    - {strategy: nope, weight: -1}\n  filters: [{strategy: least_connections}]\n"
    )
    found = problems(tmp_path, text)
    assert "g.yaml:5: strategy.scorers.1.weight: must be a number, more than 0" in found
    assert any(
        line.startswith("g.yaml:5: strategy.scorers.1.strategy: no strategy 'nope'; there are:") for line in found
    )
    assert "g.yaml:4: strategy.scorers.0.strategy.decay_s: must be a number, more than 0" in found
    assert "g.yaml:6: strategy.filters.0.at_most: is missing" in found
    assert len(found) == 4


def test_a_problem_is_one_line_whatever_the_name(tmp_path: Path) -> None:
    for text in ('models: {"a\\nb": {repository: x}}\n', "a: \0\n", 'models: {m: {repository: a, "b\\nc": 1}}'):
        assert not any("\n" in line for line in problems(tmp_path, text))
