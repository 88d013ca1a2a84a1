# SPDX-License-Identifier: Apache-2.0
"""vLLM's options, the SIM_ variables and the texts of faults."""

import pytest

from vllm_gateway.simulator.arguments import parse_arguments
from vllm_gateway.simulator.faults import Faults, UnknownFaultError
from vllm_gateway.simulator.memory_rules import EngineStartError, Footprint, check_kv_cache
from vllm_gateway.simulator.settings import SimulationSettings, estimated_weights_mib


def test_the_model_comes_first_or_as_an_option() -> None:
    assert parse_arguments(["a/b"]).model == parse_arguments(["--model", "a/b"]).model == "a/b"
    assert parse_arguments(["a/b"]).served_model_names == ("a/b",)
    assert parse_arguments(["a/b", "--served-model-name", "x", "y"]).name == "x"


def test_vllms_defaults() -> None:
    arguments = parse_arguments(["m"])
    assert (arguments.gpu_memory_utilization, arguments.max_num_seqs, arguments.port) == (0.92, 256, 8000)
    assert arguments.enable_prefix_caching
    assert not parse_arguments(["m", "--no-enable-prefix-caching"]).enable_prefix_caching


def test_common_options_are_taken_and_sizes_have_units() -> None:
    arguments = parse_arguments(
        [
            "m",
            "--dtype",
            "bfloat16",
            "--trust-remote-code",
            "-tp",
            "2",
            "--max_model_len",
            "4k",
            "--kv-cache-memory-bytes",
            "500M",
        ]
    )
    assert (arguments.tensor_parallel_size, arguments.max_model_len) == (2, 4000)
    assert parse_arguments(["m", "--kv-cache-memory-bytes", "500M"]).kv_cache_memory_bytes == 500 * 2**20


def test_an_unknown_option_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(["m", "--foo"])
    assert end.value.code == 2
    assert "error: unrecognized arguments: --foo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "mib"), [("demo/chat-4b", 7629), ("Qwen/Qwen2.5-0.5B-Instruct", 954), ("x/gemma-270m", 515), ("m", 2048)]
)
def test_weights_by_the_models_name(model: str, mib: int) -> None:
    assert estimated_weights_mib(model) == mib


def test_a_wrong_number_names_its_variable() -> None:
    with pytest.raises(SystemExit, match="SIM_LOAD_S='soon' is not a number"):
        SimulationSettings.from_environment({"SIM_LOAD_S": "soon"}, model="m", eager=False)


def test_faults_have_values_and_times() -> None:
    faults = Faults("status_503*2,close-after-tokens=5")
    assert faults.texts() == ["status_503*2", "close_after_tokens=5"]
    assert [faults.use("status_503") for _ in range(3)] == [True, True, False]
    assert faults.use_stream_fault() == ("close_after_tokens", 5)
    faults.replace([])
    assert faults.use_stream_fault() is None


def test_an_unknown_fault_is_refused_and_changes_nothing() -> None:
    faults = Faults("silent")
    with pytest.raises(UnknownFaultError, match="no fault named 'sillent'"):
        faults.replace(["sillent"])
    assert faults.texts() == ["silent"]


def test_a_kv_cache_that_is_too_small_says_how_long_the_model_may_be() -> None:
    footprint = Footprint.of(1000, 0, 0, 32.0, 2)
    assert (footprint.weights_mib, footprint.kv_mib(8192)) == (500, 128)
    with pytest.raises(EngineStartError, match=r"max seq len \(8192\), \(0.12 GiB .* maximum model length is 4096"):
        check_kv_cache(footprint, 64, 8192)
    with pytest.raises(EngineStartError, match="No available memory for the cache blocks"):
        check_kv_cache(footprint, 0, 8192)
    check_kv_cache(footprint, 128, 8192)
