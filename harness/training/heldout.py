"""Held-out preference accuracy of a policy against its reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.progress import over
from harness.stats.proportion import wilson
from harness.training.batches import Batch, Item, collate, length
from harness.training.data import TokenPair
from harness.types import Estimate


@dataclass(frozen=True)
class HeldOut:
    """Measures on held-out pairs; shares are of pairs whose better answer is preferred, ties half.

    Attributes:
        implicit_reward_accuracy: by sums of log pi_theta - log pi_ref (Rafailov et al., 2023).
        likelihood_accuracy: by sums of log pi_theta alone.
        margin: mean implicit-reward difference before beta, nats.
        chosen_log_ratio: mean sum of log pi_theta - log pi_ref of the chosen answer, nats.
        token_shift: mean over answer tokens of |log pi_theta - log pi_ref|, nats: zero for a
            policy that is its reference.
    """

    implicit_reward_accuracy: Estimate
    likelihood_accuracy: Estimate
    margin: float
    chosen_log_ratio: float
    token_shift: float

    def as_dict(self) -> dict[str, Any]:
        """Return the measures for a manifest."""
        return {
            "implicit_reward_accuracy": self.implicit_reward_accuracy.model_dump(),
            "likelihood_accuracy": self.likelihood_accuracy.model_dump(),
            "margin_nats": self.margin,
            "chosen_log_ratio_nats": self.chosen_log_ratio,
            "token_shift_nats": self.token_shift,
        }


def share(differences: Tensor) -> Estimate:
    """Return the share of positive differences, zeros counted one half, with its interval."""
    wins = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    return wilson(wins, len(differences))


class HeldOutSet:
    """Held-out pairs in batches of similar lengths; the reference reads them once."""

    def __init__(self, pairs: Sequence[TokenPair], batch: int, pad: int) -> None:
        ordered = sorted(pairs, key=length)
        items = [Item(pair=p, index=i, weights=None) for i, p in enumerate(ordered)]
        self._batches = [
            collate(items[start : start + batch], pad) for start in range(0, len(items), batch)
        ]
        self._references: list[Tensor] = []

    def measure(self, model: Any, device: torch.device, *, trained: bool = True) -> HeldOut:
        """Return the measures of a (wrapped or bare) :class:`PreferenceModel`.

        Not ``trained``, the policy is its reference, and the reference's readings are its own.
        """
        model.eval()
        if not self._references:
            self._references = self._read(model, device, "reference")
        policies = self._read(model, device, "policy") if trained else self._references
        return _summary(self._batches, policies, self._references)

    def _read(self, model: Any, device: torch.device, part: str) -> list[Tensor]:
        found = []
        for batch in over(self._batches, f"{part} on held-out pairs", "batch"):
            moved = {name: value.to(device) for name, value in batch.items()}  # type: ignore[attr-defined]
            with torch.no_grad():
                found.append(model(**moved, part=part)[part].float().cpu())
        return found


def _summary(
    batches: Sequence[Batch], policies: Sequence[Tensor], references: Sequence[Tensor]
) -> HeldOut:
    raw, ratios, shift, tokens = [], [], 0.0, 0
    for batch, policy, reference in zip(batches, policies, references, strict=True):
        ratio = policy - reference
        raw.append(policy.double().sum(-1).reshape(2, -1))
        ratios.append(ratio.double().sum(-1).reshape(2, -1))
        shift += float(ratio.abs().sum())
        tokens += int(batch["mask"].sum())
    sums, logprobs = torch.cat(ratios, -1), torch.cat(raw, -1)
    margin = sums[0] - sums[1]
    return HeldOut(
        implicit_reward_accuracy=share(margin),
        likelihood_accuracy=share(logprobs[0] - logprobs[1]),
        margin=float(margin.mean()),
        chosen_log_ratio=float(sums[0].mean()),
        token_shift=shift / tokens,
    )
