"""What a training step logs: means over pairs and tokens, collected over micro-batches."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import InputError
from harness.files import write_atomic
from harness.training.objectives import TokenStatistics

PAIR_MEANS = (
    "loss",
    "margin",
    "accuracy",
    "chosen_logprob",
    "rejected_logprob",
    "chosen_log_ratio",
    "rejected_log_ratio",
)
TOKEN_MEANS = {
    "kl_reference_policy": "kl",
    "kl_policy_reference": "reverse_kl",
    "entropy": "entropy",
}
"""Logged name to statistic."""


def peak_memory(device: torch.device) -> int:
    """Return the largest memory so far, bytes: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _total(side: TokenStatistics, values: Tensor) -> Tensor:
    return values.masked_fill(~side.mask, 0.0).sum(-1)


def pair_values(
    losses: Tensor, chosen: TokenStatistics, rejected: TokenStatistics
) -> dict[str, Tensor]:
    """Return (B,) values of a batch's pairs for :data:`PAIR_MEANS`, without gradient.

    ``margin`` is sum_t m_t(y^w) - sum_t m_t(y^l), nats, before beta; ``accuracy`` is one where it
    is positive and one half where it is zero; log-probabilities and log-ratios are sums over the
    answer, nats.
    """
    ratios = [_total(side, side.log_ratio) for side in (chosen, rejected)]
    margin = ratios[0] - ratios[1]
    values = {
        "loss": losses,
        "margin": margin,
        "accuracy": (margin > 0).float() + 0.5 * (margin == 0).float(),
        "chosen_logprob": _total(chosen, chosen.policy),
        "rejected_logprob": _total(rejected, rejected.policy),
        "chosen_log_ratio": ratios[0],
        "rejected_log_ratio": ratios[1],
    }
    return {name: value.detach() for name, value in values.items()}


class StepSums:
    """Sums of one optimiser step over its micro-batches and devices."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}

    def add(self, pairs: Mapping[str, Tensor], values: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add a micro-batch: (B,) pair values, (2B, T) statistics and their mask."""
        made = {name: float(value.double().sum()) for name, value in pairs.items()}
        for name, statistic in TOKEN_MEANS.items():
            made[name] = float(values[statistic].detach()[mask].double().sum())
        made |= {"pairs": float(len(pairs["loss"])), "tokens": float(mask.sum())}
        for name, value in made.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def close(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the step's means after ``reduce`` summed over devices; start anew."""
        names = sorted(self._sums)
        summed = reduce(torch.tensor([self._sums[n] for n in names], dtype=torch.float64))
        sums = dict(zip(names, summed.tolist(), strict=True))
        self._sums = {}
        row: dict[str, Any] = {name: sums[name] / sums["pairs"] for name in PAIR_MEANS}
        row |= {name: sums[name] / sums["tokens"] for name in TOKEN_MEANS}
        return row | {"tokens": int(sums["tokens"])}


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``row`` with null for NaN and infinities, which JSON does not have."""
    bad = {n for n, v in row.items() if isinstance(v, float) and not abs(v) < float("inf")}
    return {name: None if name in bad else value for name, value in row.items()}


class TrainLog:
    """``train_log.jsonl``: one line a step, in the order of the steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """Return the logged rows; a last line that a kill cut short is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        try:
            return [json.loads(line) for line in lines[:-1]]
        except json.JSONDecodeError as error:
            raise InputError(f"{self.path} is damaged: {error}; train into a new folder") from error

    def cut(self, steps: int) -> None:
        """Keep the rows of the first ``steps`` steps: a run goes on from there."""
        kept = [row for row in self.rows() if row["step"] <= steps and "diverged" not in row]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite(row), allow_nan=False) + "\n")
