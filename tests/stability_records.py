"""Builders of training logs for the tests of training stability."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.types import (
    StabilityParameters,
    TrainingCard,
    TrainingLog,
    TrainingRow,
    TrainingSource,
)

OBJECTIVES: dict[str, tuple[float, float, float, float]] = {
    "sft": (2.6, 1.4, 0.002, 6.0),
    "dpo": (0.69, 1.0, 0.02, -9.0),
    "bpo": (0.25, 1.1, 0.015, -6.0),
    "tdpo2": (0.69, 0.9, 0.008, -3.0),
    "tis-dpo": (0.69, 1.6, 0.03, -14.0),
    "tbpo-q": (0.25, 0.05, 0.01, 1.5),
    "tbpo-a": (0.25, 0.04, 0.012, -1.0),
}
"""Objective -> loss and gradient norm at the start, KL and chosen log-ratio at the end."""


def log_rows(objective: str, seed: int, steps: int = 64, every: int = 16) -> list[dict[str, Any]]:
    """Return a made-up log in the form that training writes."""
    start, norm, kl, ratio = OBJECTIVES[objective]
    rng = np.random.default_rng([seed, list(OBJECTIVES).index(objective)])
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        spike = 4.0 if rng.random() < 0.03 else 1.0
        row: dict[str, Any] = {
            "step": step,
            "loss": start * (1 - 0.25 * done + 0.04 * rng.standard_normal()),
            "gradient_norm": norm * spike * float(np.exp(0.25 * rng.standard_normal())),
            "learning_rate": 5e-4,
            "kl_reference_policy": kl * done**1.5 * float(np.exp(0.15 * rng.standard_normal())),
            "chosen_log_ratio": ratio * done + 0.1 * abs(ratio) * rng.standard_normal(),
            "tokens": 480 + 16 * (7 * step % 5),
        }
        if step % every == 0 or step == steps:
            row |= {
                "held_out_accuracy": 0.5 + 0.1 * done + 0.02 * float(rng.standard_normal()),
                "held_out_pairs": 200,
                "held_out_chosen_log_ratio": 0.9 * ratio * done,
            }
        rows.append(row)
    return rows


def write_log(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_seeds(
    folder: Path, objective: str, seeds: Sequence[int] = (0, 1, 2), **more: Any
) -> Path:
    for seed in seeds:
        log = folder / "seeds" / f"seed-{seed}" / "train_log.jsonl"
        write_log(log, log_rows(objective, seed, **more))
    return folder


def row(checkpoint: str, seed: int | None, step: int, **values: Any) -> TrainingRow:
    given = {"loss": 1.0, "gradient_norm": 1.0} | values
    return TrainingRow(checkpoint=checkpoint, seed=seed, step=step, **given)


def card(rows: Sequence[TrainingRow], *, without: Sequence[str] = (), **given: Any) -> TrainingCard:
    """Return the card of a run whose logs are ``rows``; ``without`` names checkpoints without."""
    sources = [TrainingSource(checkpoint=name, reason="no log") for name in without]
    for name in dict.fromkeys(r.checkpoint for r in rows):
        seeds = dict.fromkeys(r.seed for r in rows if r.checkpoint == name)
        logs = [
            TrainingLog(
                seed=seed,
                file=f"seeds/seed-{seed}/train_log.jsonl",
                sha256="ab" * 32,
                rows=sum((r.checkpoint, r.seed) == (name, seed) for r in rows),
            )
            for seed in seeds
        ]
        sources.append(TrainingSource(checkpoint=name, logs=tuple(logs)))
    return TrainingCard(
        name="training_stability",
        version=1,
        title="Training stability",
        content_sha256="c",
        parameters=StabilityParameters(**given),
        sources=tuple(sources),
    )
