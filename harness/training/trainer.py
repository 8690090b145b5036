"""A small trainer: preference pairs and an objective to a PEFT adapter with a manifest."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import plugins
from harness.adapters.embedded import MODELS
from harness.adapters.identity import template_sha256, weights_sha256
from harness.errors import InputError, TrainingError
from harness.files import cache_root, sha256_file, write_atomic
from harness.progress import over
from harness.stats.proportion import wilson
from harness.training.data import Skips, TokenPair, read_pairs, split_holdout, tokenize_pair
from harness.training.model import BaselineHead, Batch, LoraPolicy, LoraSettings, collate, halves
from harness.training.objectives import Objective, TokenStatistics
from harness.types import Estimate

HEAD_LEARNING_RATE = 1e-3
"""AdamW rate of TBPO-Q's baseline head (TokenRatio paper)."""

_POSITIVE = ("steps", "batch", "learning_rate", "clip", "holdout", "max_prompt", "max_response")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run, data apart.

    Attributes:
        options: fields of the objective that differ from its defaults.
        warmup: share of the steps over which the learning rate rises.
        clip: largest norm of the adapter's gradient.
        holdout: pairs kept for measurement. max_prompt, max_response: limits in tokens.

    Raises:
        InputError: a number is outside its range.
    """

    objective: str
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: int = 100
    batch: int = 8
    learning_rate: float = 5e-4
    warmup: float = 0.05
    clip: float = 1.0
    holdout: int = 200
    max_prompt: int = 160
    max_response: int = 96
    bfloat16: bool = True
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"warmup is a share of the steps in [0, 1], got {self.warmup}")


def build_objective(name: str, options: dict[str, Any]) -> Objective:
    """Return the objective registered as ``name`` with ``options`` as its fields.

    Raises:
        InputError: unknown objective or option (the known ones are listed), or an unusable value.
    """
    cls: Any = plugins.load("objectives", name)
    known = {f.name for f in dataclasses.fields(cls) if not f.name.startswith("needs_")}
    if extra := sorted(set(options) - known):
        raise InputError(
            f"objective '{name}' has no option {', '.join(extra)}. Options: "
            f"{', '.join(sorted(known))}."
        )
    try:
        objective: Objective = cls(**options)
    except TypeError as error:
        raise InputError(f"objective '{name}' cannot use the options {options}: {error}") from error
    return objective


def schedule(recipe: Recipe, step: int) -> float:
    """Return the factor on the learning rate at 0-based ``step``: linear warm-up, then cosine."""
    warm = max(1, round(recipe.warmup * recipe.steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    return 0.5 * (1 + math.cos(math.pi * done))


def batches(
    pairs: Sequence[TokenPair], recipe: Recipe, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Yield ``recipe.steps`` lists of indices; epochs are reshuffled, lengths kept together."""
    pool: list[list[int]] = []
    window = 8 * recipe.batch
    for _ in range(recipe.steps):
        if not pool:
            order = [int(i) for i in rng.permutation(len(pairs))]
            for start in range(0, len(order) - recipe.batch + 1, window):
                near = sorted(order[start : start + window], key=lambda i: _length(pairs[i]))
                groups = [near[i : i + recipe.batch] for i in range(0, len(near), recipe.batch)]
                full = [g for g in groups if len(g) == recipe.batch]
                pool += [full[int(i)] for i in rng.permutation(len(full))]
        yield pool.pop(0)


def _length(pair: TokenPair) -> int:
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


@dataclass(frozen=True)
class HeldOut:
    """Held-out measures: shares of pairs whose better answer is preferred, ties at half."""

    implicit_reward_accuracy: Estimate
    likelihood_accuracy: Estimate
    mean_margin: float
    mean_abs_token_shift: float


def _share(differences: np.ndarray) -> Estimate:
    wins = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    return wilson(wins, len(differences))


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out pairs in batches with the reference's log-probabilities, computed once."""

    batches: tuple[Batch, ...]
    references: tuple[Tensor, ...]


def held_out_set(policy: LoraPolicy, pairs: Sequence[TokenPair], batch: int) -> HeldOutSet:
    """Return ``pairs`` ordered by length, with the reference's readings."""
    order = sorted(range(len(pairs)), key=lambda i: _length(pairs[i]))
    made = tuple(
        collate([pairs[i] for i in order[start : start + batch]], policy.pad)
        for start in range(0, len(order), batch)
    )
    shown = over(made, "reference on held-out pairs", "batch")
    return HeldOutSet(made, tuple(policy.reference_logprobs(b) for b in shown))


def evaluate(policy: LoraPolicy, held: HeldOutSet, *, trained: bool) -> HeldOut:
    """Measure the policy on held-out pairs against the reference (adapter off).

    ``implicit_reward_accuracy`` compares sums of log pi_theta - log pi_ref (Rafailov et al.,
    2023), ``likelihood_accuracy`` sums of log pi_theta alone; ``mean_margin`` is the mean
    implicit-reward difference before beta, nats; ``mean_abs_token_shift`` is the mean over answer
    tokens of |log pi_theta - log pi_ref|, nats: zero for an adapter that changes nothing.
    Untrained, the adapter changes nothing and the reference's own readings are the policy's.
    """
    policy.set_dropout(False)
    margins, raw, shift, count = [], [], 0.0, 0
    shown = over(held.batches, "held-out pairs", "batch")
    for made, reference in zip(shown, held.references, strict=True):
        with torch.no_grad():
            stats = (
                policy.statistics(made, reference, None, kl=False)
                if trained
                else TokenStatistics(reference, reference, made.mask.to(reference.device))
            )
        shift += float(stats.log_ratio.abs().sum())
        count += int(stats.mask.sum())
        chosen, rejected = halves(stats)
        margins.append((chosen.log_ratio.sum(-1) - rejected.log_ratio.sum(-1)).cpu())
        sums = [(s.policy * s.mask).sum(-1).cpu() for s in (chosen, rejected)]
        raw.append(sums[0] - sums[1])
    margin, plain = torch.cat(margins).double().numpy(), torch.cat(raw).double().numpy()
    return HeldOut(_share(margin), _share(plain), float(margin.mean()), shift / max(1, count))


def _check_finite(step: int, what: str, value: Tensor) -> None:
    if not torch.isfinite(value):
        raise TrainingError(
            f"{what} is {value.item()} at step {step}; lower learning_rate or beta. "
            "No adapter was written."
        )


class Trainer:
    """Runs a recipe on tokenised pairs; one instance, one run."""

    def __init__(self, recipe: Recipe, base: Path) -> None:
        self.recipe = recipe
        self.base = base
        torch.manual_seed(recipe.seed)
        self.objective = build_objective(recipe.objective, recipe.options)
        self.policy = LoraPolicy(base, recipe.lora, bfloat16=recipe.bfloat16)
        self.optimizer = torch.optim.AdamW(
            self.policy.trainable(), lr=recipe.learning_rate, weight_decay=0.0
        )
        self.head: BaselineHead | None = None
        self.head_optimizer: torch.optim.AdamW | None = None
        if self.objective.needs_baseline:
            self.head = BaselineHead(self.policy.hidden_size).to(self.policy.device)
            self.head_optimizer = torch.optim.AdamW(self.head.parameters(), lr=HEAD_LEARNING_RATE)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,) losses and (B,) detached implicit-reward margins, nats."""
        reference = self.policy.reference_logprobs(batch)
        stats = self.policy.statistics(batch, reference, self.head, kl=self.objective.needs_kl)
        chosen, rejected = halves(stats)
        margin = chosen.log_ratio.sum(-1) - rejected.log_ratio.sum(-1)
        return self.objective.losses(chosen, rejected), margin.detach()

    def _update(self, index: int, loss: Tensor) -> float:
        """Take one optimiser step down ``loss``; return the adapter's gradient norm."""
        optimizers = [o for o in (self.optimizer, self.head_optimizer) if o is not None]
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.trainable(), self.recipe.clip)
        _check_finite(index, "gradient norm", norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * schedule(self.recipe, index)
        for optimizer in optimizers:
            optimizer.step()
        return float(norm)

    def step(self, index: int, batch: Batch) -> dict[str, float]:
        """Take one optimiser step; return what is logged.

        Raises:
            TrainingError: loss or gradient is NaN or infinite.
        """
        started = time.monotonic()
        losses, margin = self._losses(batch)
        loss = losses.mean()
        _check_finite(index, "loss", loss)
        norm = self._update(index, loss)
        return {
            "step": index,
            "loss": loss.item(),
            "gradient_norm": norm,
            "margin": float(margin.mean()),
            "accuracy": float((margin > 0).float().mean() + 0.5 * (margin == 0).float().mean()),
            "seconds": round(time.monotonic() - started, 3),
        }

    def run(self, pairs: Sequence[TokenPair], log: Path) -> list[dict[str, float]]:
        """Train on ``pairs``; write one JSON line a step to ``log``; return the logged rows."""
        rng = np.random.default_rng(self.recipe.seed)
        plan = list(batches(pairs, self.recipe, rng))
        self.policy.set_dropout(True)
        rows = []
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as stream:
            for index, chosen in enumerate(over(plan, f"train {self.recipe.objective}", "step")):
                row = self.step(index, collate([pairs[i] for i in chosen], self.policy.pad))
                rows.append(row)
                stream.write(json.dumps(row) + "\n")
                stream.flush()
        return rows


def _tokenized(trainer: Trainer, pairs: Sequence[Any], skips: Skips) -> list[TokenPair]:
    recipe, tokenizer = trainer.recipe, trainer.policy.tokenizer
    made = (
        tokenize_pair(
            tokenizer,
            pair,
            max_prompt=recipe.max_prompt,
            max_response=recipe.max_response,
            skips=skips,
        )
        for pair in pairs
    )
    return [pair for pair in made if pair is not None]


def _public_base(base: Path) -> str:
    """Return the base's hub id where it is the embedded model in the cache, else its path."""
    if base.parent == cache_root() / "models":
        for model in MODELS.values():
            if base.name.startswith(f"{model.name}-{model.version}-"):
                return model.hub_id
    return str(base.resolve())


def _measures(held: HeldOut) -> dict[str, Any]:
    return {
        "implicit_reward_accuracy": held.implicit_reward_accuracy.model_dump(),
        "likelihood_accuracy": held.likelihood_accuracy.model_dump(),
        "mean_margin_nats": held.mean_margin,
        "mean_abs_token_shift_nats": held.mean_abs_token_shift,
    }


def measure(recipe: Recipe, base: Path, adapter: Path, held: Sequence[TokenPair]) -> dict[str, Any]:
    """Return a manifest's held-out measures of a saved adapter, before and after training.

    In float32, whatever it was trained in: in bfloat16 rounding alone moves the log-probability of
    an answer by as much as a short training does.
    """
    policy = LoraPolicy.trained(base, adapter, recipe.lora)
    pairs = held_out_set(policy, held, recipe.batch)
    before = evaluate(policy, pairs, trained=False)
    after = evaluate(policy, pairs, trained=True)
    return {
        "held_out": {
            "arithmetic": "float32",
            "before": _measures(before),
            "after": _measures(after),
        },
        "differs_from_base": (
            f"on held-out answers the log-probability of a token moved by "
            f"{after.mean_abs_token_shift:.4f} nats on average (base: 0), in float32"
        ),
    }


def _name_base(adapter: Path, name: str) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name
    write_atomic(adapter / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True))


def train(recipe: Recipe, base: Path, data: Sequence[Path], output: Path) -> dict[str, Any]:
    """Train one adapter; write it with ``train_log.jsonl`` and ``manifest.json`` to ``output``.

    Returns:
        the manifest.

    Raises:
        InputError: unusable data, or ``output`` already holds an adapter.
        TrainingError: loss or weights are not finite.
    """
    if (output / "adapter_config.json").exists():
        raise InputError(f"{output} already holds an adapter; give another --output")
    skips = Skips()
    rng = np.random.default_rng(recipe.seed)
    training, held = split_holdout(read_pairs(data, skips), recipe.holdout, rng)
    trainer = Trainer(recipe, base)
    pairs = _tokenized(trainer, training, skips)
    held_skips = Skips()
    held_pairs = _tokenized(trainer, held, held_skips)
    if len(pairs) < recipe.batch or not held_pairs:
        raise InputError(
            f"{len(pairs)} usable training pairs and {len(held_pairs)} held-out ones; expected at "
            f"least one batch of {recipe.batch} and one. Give more pairs, or raise max_prompt."
        )
    started = time.monotonic()
    rows = trainer.run(pairs, output / "train_log.jsonl")
    seconds = time.monotonic() - started
    trainer.policy.save(output)
    _name_base(output, _public_base(base))
    last = rows[-min(10, len(rows)) :]
    manifest = {
        "objective": recipe.objective,
        "recipe": dataclasses.asdict(recipe),
        "objective_fields": dataclasses.asdict(trainer.objective),  # type: ignore[call-overload]
        "base": {
            "name": _public_base(base),
            "weights_sha256": weights_sha256(base),
            "template_sha256": template_sha256(base),
        },
        "data": [{"file": p.name, "sha256": sha256_file(p)} for p in data],
        "pairs": {
            "training": len(pairs),
            "held_out": len(held_pairs),
            "skips": dict(skips.counts),
            "held_out_skips": dict(held_skips.counts),
        },
        "steps": recipe.steps,
        "final_loss": float(np.mean([r["loss"] for r in last])),
        "final_loss_is": f"mean of the last {len(last)} steps",
        "first_loss": rows[0]["loss"],
        **measure(recipe, base, output, held_pairs),
        "seconds": round(seconds, 1),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomic(output / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return manifest
