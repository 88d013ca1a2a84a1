# SPDX-License-Identifier: Apache-2.0
"""vLLM's rules for GPU memory, between processes: the demand at start, the profile, exact sizes, sleep, the end."""

import signal

import pytest

from tests.integration.simulator.launcher import Launcher
from tests.waiting import until
from vllm_gateway.simulator.gpu_memory import SimulatedGpus

SMALL = {"weights_mib": 1000, "activation_mib": 100, "cuda_graph_mib": 24, "kv_mib_per_1k_tokens": 32}


async def test_an_engine_takes_its_share_of_the_gpu_and_gives_it_back(gpus: SimulatedGpus, launcher: Launcher) -> None:
    engine = await launcher.ready("--gpu-memory-utilization=0.5", **SMALL)
    assert [gpu.used_mib for gpu in gpus.gpus()] == [5120, 0]
    assert {pid for pid, _ in gpus.gpus()[0].processes} == {engine.process.pid}
    assert "Model loading took 0.98 GiB memory and" in engine.log
    assert "Free memory on device (10.0/10.0 GiB) on startup. Desired GPU memory utilization is (0.5, 5.0 GiB)" in (
        engine.log
    )
    assert "50% Completed | 2/4" in engine.log
    assert "Available KV cache memory: 3.9 GiB" in engine.log
    assert "GPU KV cache size: 127,872 tokens" in engine.log
    assert "Maximum concurrency for 8,192 tokens per request: 15.61x" in engine.log
    engine.terminate()
    assert await engine.exit_status() == 0
    assert gpus.gpus()[0].used_mib == 0


async def test_a_killed_engine_holds_no_memory(gpus: SimulatedGpus, launcher: Launcher) -> None:
    engine = await launcher.ready(**SMALL)
    engine.process.send_signal(signal.SIGKILL)
    await engine.exit_status()
    assert gpus.gpus()[0].used_mib == 0


async def test_less_free_than_the_share_ends_the_start(gpus: SimulatedGpus, launcher: Launcher) -> None:
    other = gpus.take("GPU-sim-0", 2048)
    engine = await launcher.start(**SMALL)
    assert await engine.exit_status() == 1
    assert (
        "ValueError: Free memory on device cuda:0 (8.0/10.0 GiB) on startup is less than desired GPU memory "
        "utilization (0.92, 9.2 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    ) in engine.log
    assert "RuntimeError: Engine core initialization failed." in engine.log
    other.release()


async def test_two_shares_fit_side_by_side(gpus: SimulatedGpus, launcher: Launcher) -> None:
    for _ in range(2):
        await launcher.ready("--gpu-memory-utilization=0.45", **SMALL)
    assert gpus.gpus()[0].used_mib == 2 * 4608


async def test_a_fixed_kv_cache_ignores_the_utilization(gpus: SimulatedGpus, launcher: Launcher) -> None:
    other = gpus.take("GPU-sim-0", 8000)
    engine = await launcher.ready("--kv-cache-memory-bytes=512M", **SMALL)
    assert gpus.gpus()[0].used_mib == 8000 + 1000 + 100 + 24 + 512
    assert "reserved 0.5 GiB memory for KV Cache as specified by kv_cache_memory_bytes config" in engine.log
    other.release()


async def test_the_start_check_can_be_had_with_a_fixed_kv_cache(gpus: SimulatedGpus, launcher: Launcher) -> None:
    other = gpus.take("GPU-sim-0", 8000)
    engine = await launcher.start("--kv-cache-memory-bytes=512M", start_check_always=1, **SMALL)
    assert await engine.exit_status() == 1
    other.release()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu-memory-utilization=0.1"], "ValueError: No available memory for the cache blocks."),
        (["--gpu-memory-utilization=0.12"], "ValueError: To serve at least one request with the model's max seq len"),
        (["--tensor-parallel-size=3"], "ValueError: World size (3) is larger than the number of available GPUs (2)"),
        (["--kv-cache-memory-bytes=12G"], "torch.OutOfMemoryError: CUDA out of memory."),
    ],
)
async def test_what_cannot_fit_says_so(
    gpus: SimulatedGpus, launcher: Launcher, arguments: list[str], message: str
) -> None:
    engine = await launcher.start(*arguments, **SMALL)
    assert await engine.exit_status() == 1
    assert message in engine.log
    assert gpus.gpus()[0].used_mib == 0


async def test_tensor_parallel_engines_take_memory_on_each_gpu(gpus: SimulatedGpus, launcher: Launcher) -> None:
    await launcher.ready("-tp", "2", "--kv-cache-memory-bytes=512M", **SMALL)
    assert [gpu.used_mib for gpu in gpus.gpus()] == [500 + 124 + 512] * 2


async def test_only_visible_gpus_are_used(gpus: SimulatedGpus, launcher: Launcher) -> None:
    await launcher.ready(NVIDIA_VISIBLE_DEVICES="GPU-sim-1", **SMALL)
    assert [gpu.used_mib for gpu in gpus.gpus()] == [0, 9421]


async def test_memory_given_back_during_the_profile_kills_the_engine(gpus: SimulatedGpus, launcher: Launcher) -> None:
    other = gpus.take("GPU-sim-0", 1000)
    engine = await launcher.start("--gpu-memory-utilization=0.5", **SMALL | {"load_s": 60, "profile_share": 1})
    await until(lambda: gpus.gpus()[0].used_mib == 1000 + 1000 + 124)
    await engine.says("Model loading took")
    other.release()
    assert await engine.exit_status() == 1
    assert "AssertionError: Error in memory profiling. Initial free memory 7.93 GiB, current free memory 8.9" in (
        engine.log
    )
    assert "release GPU memory while vLLM is profiling" in engine.log


async def test_memory_taken_during_the_profile_is_counted_as_its_own(gpus: SimulatedGpus, launcher: Launcher) -> None:
    engine = await launcher.start("--gpu-memory-utilization=0.5", **SMALL | {"load_s": 1.0, "profile_share": 1})
    await until(lambda: gpus.gpus()[0].used_mib == 1000 + 124)
    await engine.says("Model loading took")
    other = gpus.take("GPU-sim-0", 2000)
    await engine.ready()
    assert gpus.gpus()[0].used_mib == 5120
    other.release()


async def test_sleep_gives_memory_back_and_waking_takes_it(gpus: SimulatedGpus, launcher: Launcher) -> None:
    engine = await launcher.ready(
        "--enable-sleep-mode", "--gpu-memory-utilization=0.5", VLLM_SERVER_DEV_MODE="1", wake_s=0.01, **SMALL
    )
    async with engine.client.post("/sleep?level=1") as reply:
        assert reply.status == 200
    assert gpus.gpus()[0].used_mib == 124
    assert "Sleep mode freed 4.88 GiB memory, 0.12 GiB memory is still in use." in engine.log
    other = gpus.take("GPU-sim-0", 8000)
    async with engine.client.post("/wake_up") as reply:
        assert reply.status == 500
        assert "CUDA out of memory" in (await reply.json())["error"]["message"]
    assert gpus.gpus()[0].used_mib == 124 + 8000
    other.release()
    async with engine.client.post("/wake_up") as reply:
        assert reply.status == 200
    assert gpus.gpus()[0].used_mib == 5120
    assert (await engine.complete())[0] == 200


async def test_without_gpus_it_serves_all_the_same(launcher: Launcher) -> None:
    engine = await launcher.ready()
    assert "CPU mode" in engine.log
    assert (await engine.complete())[0] == 200
