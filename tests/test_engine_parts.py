"""The engine's own numerics, against torch and against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed (extra cpu or gpu)")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from harness.engines import ENTROPY_KEY as KEY
from harness.engines.entropy import EntropyProbe, batch_entropy, entropies
from harness.engines.nucleus import truncate
from harness.engines.rows import follow


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 5000, generator=torch.Generator().manual_seed(0)) * 3


def test_entropy_is_exact(logits: torch.Tensor) -> None:
    exact = torch.distributions.Categorical(logits=logits.double()).entropy()
    found = entropies(logits, range(6))
    assert [found[i] for i in range(6)] == pytest.approx(exact.tolist(), abs=1e-5)
    assert batch_entropy(logits).tolist() == pytest.approx(exact.tolist(), abs=1e-4)


def test_entropy_of_certain_uniform_and_masked() -> None:
    certain = torch.tensor([[100.0, 0.0, 0.0, 0.0]])
    uniform = torch.zeros(1, 4)
    masked = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    assert entropies(certain, [0])[0] == pytest.approx(0.0, abs=1e-6)
    assert entropies(uniform, [0])[0] == pytest.approx(np.log(4))
    assert entropies(masked, [0])[0] == pytest.approx(np.log(2))
    assert batch_entropy(masked)[0].item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_nucleus_is_the_smallest_set_of_mass_p(p: float, scale: float) -> None:
    row = (np.random.default_rng(1).normal(size=5000) * scale).astype(np.float32)
    cut = row.copy()
    truncate(cut, p)
    kept = np.isfinite(cut)
    probabilities = np.exp(row.astype(np.float64) - row.max())
    probabilities /= probabilities.sum()
    assert np.array_equal(cut[kept], row[kept])
    assert probabilities[kept].sum() >= p - 1e-6
    assert probabilities[kept].sum() - probabilities[kept].min() < p + 1e-6
    assert probabilities[kept].min() >= probabilities[~kept].max(initial=0.0)


def test_nucleus_keeps_the_likeliest_token() -> None:
    row = np.array([5.0, 0.0, -1.0], dtype=np.float32)
    truncate(row, 0.01)
    assert np.isfinite(row).tolist() == [True, False, False]


def params(key: str | None) -> SamplingParams:
    return SamplingParams(extra_args={KEY: key} if key else None)


def entry(given: SamplingParams, output: list[int]) -> str | None:
    return (given.extra_args or {}).get(KEY)


def update(**changes: object) -> BatchUpdate:
    return BatchUpdate(
        **({"batch_size": 4, "removed": [], "added": [], "moved": []} | changes)  # type: ignore[arg-type]
    )


def test_rows_follow_removal_addition_move_and_swap() -> None:
    rows: dict[int, str] = {}
    follow(rows, update(added=[(i, params(k), None, []) for i, k in enumerate("abc")]), entry)
    assert rows == {0: "a", 1: "b", 2: "c"}
    follow(rows, update(removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]), entry)
    assert rows == {0: "c", 1: "b"}
    follow(rows, update(moved=[(0, 1, MoveDirectionality.SWAP)]), entry)
    assert rows == {0: "b", 1: "c"}
    follow(rows, update(removed=[1], added=[(1, params(None), None, [])]), entry)
    assert rows == {0: "b"}


def test_probe_keys_values_by_token_so_that_a_repeated_step_counts_once(
    logits: torch.Tensor,
) -> None:
    probe = EntropyProbe(None, torch.device("cpu"), False)  # type: ignore[arg-type]
    output: list[int] = []
    probe.update_state(update(added=[(0, params("a"), None, output)]))
    probe.apply(logits[:1])
    probe.apply(logits[1:2])  # the same step again, after a preemption
    output.append(7)
    untouched = logits[2:3].clone()
    assert torch.equal(probe.apply(logits[2:3]), untouched)
    found = probe.take(["a"])["a"]
    exact = torch.distributions.Categorical(logits=logits.double()).entropy()
    assert found == pytest.approx([exact[1].item(), exact[2].item()], abs=1e-5)
    assert probe.take(["a"]) == {"a": []}
