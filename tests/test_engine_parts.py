"""The engine's own numerics, against torch and against a plain sort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed (extra cpu or gpu)")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from harness.engines import FORCED_KEY
from harness.engines import PROBE_KEY as KEY
from harness.engines.nucleus import truncate
from harness.engines.probe import Step, TokenProbe, batch_steps, row_step
from harness.engines.rows import follow


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 5000, generator=torch.Generator().manual_seed(0)) * 3


def exact(logits: torch.Tensor) -> tuple[list[float], list[float]]:
    """Return entropies over all tokens and over the 20 likeliest, in float64."""
    whole = torch.distributions.Categorical(logits=logits.double()).entropy()
    top = logits.double().topk(min(20, logits.shape[-1]), -1).values
    return whole.tolist(), torch.distributions.Categorical(logits=top).entropy().tolist()


def rows(logits: torch.Tensor) -> list[Step]:
    return [row_step(row, np.empty_like(row)) for row in logits.numpy()]


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("read", [rows, batch_steps])
def test_entropies_and_logprobs_are_exact(
    logits: torch.Tensor, scale: float, read: Callable[[torch.Tensor], list[Step]]
) -> None:
    logits *= scale
    whole, top = exact(logits)
    before = logits.clone()
    found = read(logits)
    assert torch.equal(logits, before)
    assert [s.entropy for s in found] == pytest.approx(whole, abs=2e-5)
    assert [s.entropy_top for s in found] == pytest.approx(top, abs=2e-5)
    expected = logits.double().log_softmax(-1)[:, 17]
    assert [s.logprob(float(s.shifted[17])) for s in found] == pytest.approx(
        expected.tolist(), abs=1e-4
    )


@pytest.mark.parametrize("read", [rows, batch_steps])
def test_entropy_of_certain_uniform_and_masked(
    read: Callable[[torch.Tensor], list[Step]],
) -> None:
    inf = torch.inf
    given = torch.tensor([[100.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 0, -inf, -inf]])
    found = read(given)
    for values in ([s.entropy for s in found], [s.entropy_top for s in found]):
        assert values == pytest.approx([0.0, np.log(4), np.log(2)], abs=1e-6)


class Batch:
    """Drives a probe as vLLM does: every step each request gets a token."""

    def __init__(self, **extra: dict[str, Any]) -> None:
        self.probe = TokenProbe(None, torch.device("cpu"), False)  # type: ignore[arg-type]
        self.outputs: list[list[int]] = [[] for _ in extra]
        added = [
            (row, SamplingParams(extra_args={KEY: key, **more}), [1], self.outputs[row])
            for row, (key, more) in enumerate(extra.items())
        ]
        self.probe.update_state(
            BatchUpdate(batch_size=len(added), removed=[], added=added, moved=[])
        )

    def step(self, logits: torch.Tensor) -> torch.Tensor:
        left = self.probe.apply(logits.clone())
        for row, output in enumerate(self.outputs):
            output.append(int(left[row].argmax()))
        left.div_(7.0)  # what vLLM does to them afterwards must not matter
        return left


def test_probe_reads_the_token_that_was_taken_then() -> None:
    steps = torch.randn(5, 2, 300, generator=torch.Generator().manual_seed(3)) * 2
    batch = Batch(a={}, b={})
    for logits in steps:
        assert torch.equal(batch.step(logits), logits / 7.0)
    found = batch.probe.take({"a": batch.outputs[0], "b": batch.outputs[1]})
    for row, key in enumerate("ab"):
        expected = steps[:, row].log_softmax(-1).amax(-1)
        assert found[key][0] == pytest.approx(expected.tolist(), abs=1e-5)
        assert found[key][1] == pytest.approx(exact(steps[:, row])[0], abs=1e-5)
    assert batch.probe.take({"a": batch.outputs[0]}) == {}


def test_repeated_step_is_counted_once() -> None:
    logits = torch.randn(3, 1, 50, generator=torch.Generator().manual_seed(3))
    batch = Batch(a={})
    batch.step(logits[0])
    batch.probe.apply(logits[2].clone())  # a step whose token was thrown away by preemption
    batch.step(logits[1])
    found = batch.probe.take({"a": batch.outputs[0]})["a"]
    assert found[1] == pytest.approx(exact(logits[:2, 0])[0], abs=1e-5)
    assert found[0] == pytest.approx(logits[:2, 0].log_softmax(-1).amax(-1).tolist(), abs=1e-5)


def test_forced_answer_is_taken_and_its_own_probability_read() -> None:
    steps = torch.randn(3, 1, 50, generator=torch.Generator().manual_seed(3))
    batch = Batch(a={FORCED_KEY: [4, 9, 2]})
    for logits in steps:
        batch.step(logits)
    assert batch.outputs == [[4, 9, 2]]
    found = batch.probe.take({"a": [4, 9, 2]})["a"]
    log_p = steps[:, 0].log_softmax(-1)
    assert found[0] == pytest.approx([float(log_p[i, t]) for i, t in enumerate([4, 9, 2])])


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
