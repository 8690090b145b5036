"""Settings follow from the hardware, and each worker gets its share of it."""

from __future__ import annotations

import pytest

from harness.engines import settings, workers
from harness.engines.settings import (
    EngineSettings,
    ModelFacts,
    cpu_cache_gib,
    default_settings,
    gpu_layout,
)
from harness.errors import EngineError, InputError

SMALL = ModelFacts(context=8192, weights_gib=0.25, cache_bytes=23_040, heads=9)
LARGE = ModelFacts(context=131_072, weights_gib=15.0, cache_bytes=131_072, heads=32)
HUGE = ModelFacts(context=131_072, weights_gib=131.0, cache_bytes=327_680, heads=64)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "is_cpu_build", lambda: True)
    monkeypatch.setattr(settings, "total_memory_gib", lambda: 24.0)


def test_a_cpu_gets_small_batches_and_a_cache_that_holds_them(cpu: None) -> None:
    found = default_settings(SMALL, None)
    assert (found.max_model_len, found.max_num_seqs, found.own_top_p) == (1024, 64, True)
    assert found.kv_cache_gib * 2**30 >= 1024 * 64 * SMALL.cache_bytes
    assert (found.tensor_parallel_size, found.data_parallel_size) == (1, 1)
    assert default_settings(SMALL, 2048).max_model_len == 2048
    assert default_settings(ModelFacts(512, 0.1, 1024, 4), None).max_model_len == 512


@pytest.mark.parametrize(("memory", "expected"), [(24.0, 8.0), (10.0, 4.0), (0.5, 0.5)])
def test_cache_is_what_a_full_batch_needs_within_the_memory(memory: float, expected: float) -> None:
    assert cpu_cache_gib(LARGE, 1024, 64, memory) == expected


def test_context_beyond_the_models_is_refused(cpu: None) -> None:
    with pytest.raises(InputError, match=r"--max-model-len 9000 is beyond the model's own .* 8192"):
        default_settings(SMALL, 9000)


@pytest.mark.parametrize(
    ("model", "gpus", "memory", "expected"),
    [
        (SMALL, 1, 80.0, (1, 1)),
        (SMALL, 4, 80.0, (1, 4)),
        (LARGE, 4, 80.0, (1, 4)),
        (LARGE, 4, 16.0, (2, 2)),
        (HUGE, 4, 80.0, (4, 1)),
        (HUGE, 8, 80.0, (4, 2)),
        (SMALL, 4, 0.3, (3, 1)),  # 9 heads are divided by 3, not by 2
    ],
)
def test_all_gpus_are_used_and_a_model_spread_over_as_few_as_hold_it(
    model: ModelFacts, gpus: int, memory: float, expected: tuple[int, int]
) -> None:
    assert gpu_layout(model, gpus, memory) == expected


def test_gpus_get_large_batches_and_vllms_own_top_p(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "is_cpu_build", lambda: False)
    monkeypatch.setattr(settings, "_gpus", lambda: (4, 80.0))
    found = default_settings(LARGE, None)
    assert (found.max_num_seqs, found.chunk, found.max_model_len) == (256, 4096, 4096)
    assert (found.data_parallel_size, found.own_top_p, found.enforce_eager) == (4, False, False)


def test_workers_share_gpus_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "is_cpu_build", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    two = EngineSettings(tensor_parallel_size=2, data_parallel_size=2)
    shares = [workers.device_environment(two, place)["CUDA_VISIBLE_DEVICES"] for place in (0, 1)]
    assert shares == ["3,5", "6,7"]
    assert "CUDA_VISIBLE_DEVICES" not in workers.device_environment(EngineSettings(), 0)
    with pytest.raises(EngineError, match="needs 6 GPUs; 4 are visible"):
        workers.device_environment(two.model_copy(update={"data_parallel_size": 3}), 0)


def test_deterministic_gpus_use_batch_invariant_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "is_cpu_build", lambda: False)
    found = workers.device_environment(EngineSettings(deterministic=True), 0)
    assert found == {"VLLM_BATCH_INVARIANT": "1"}


def test_workers_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "is_cpu_build", lambda: True)
    monkeypatch.setattr(workers, "usable_cores", lambda: 5)
    assert workers.device_environment(EngineSettings(), 0) == {}
    both = EngineSettings(data_parallel_size=2)
    assert workers.device_environment(both, 1) == {"OMP_NUM_THREADS": "2"}
    many = EngineSettings(data_parallel_size=9)
    assert workers.device_environment(many, 8) == {"OMP_NUM_THREADS": "1"}


def test_identity_names_engine_versions_and_every_setting() -> None:
    found = EngineSettings(max_num_seqs=7).identity("transformers")
    assert found["name"] == "transformers"
    assert found["transformers"].split(".")[0].isdigit()
    assert found["max_num_seqs"] == 7
    assert set(EngineSettings.model_fields) <= set(found)


def test_an_engine_that_uses_one_gpu_is_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "is_cpu_build", lambda: False)
    monkeypatch.setattr(settings, "_gpus", lambda: (4, 80.0))
    found = default_settings(HUGE, None, spread=False)
    assert (found.tensor_parallel_size, found.data_parallel_size) == (1, 1)


def test_memory_is_that_of_the_machine() -> None:
    assert 0.1 < settings.total_memory_gib() < 10_000
