"""Supervised fine-tuning on the chosen response."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.training.objectives.base import Statistic, TokenStatistics, masked_mean


@dataclass(frozen=True)
class Sft:
    """SFT: -(1/abs(y^w)) sum_t log pi_theta(y_t^w|s_t), nats per token; y^l is not read."""

    @property
    def requires(self) -> frozenset[Statistic]:
        """Nothing beyond log-probabilities."""
        return frozenset()

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        return -masked_mean(chosen.policy, chosen.mask)
