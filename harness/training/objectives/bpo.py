"""Bregman Preference Optimization: ratio matching on whole responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.training.objectives.base import Statistic, TokenStatistics, margin
from harness.training.objectives.bregman import RatioMatching


@dataclass(frozen=True)
class Bpo(RatioMatching):
    """BPO: l_h(R), log R = beta (sum_t m_t(y^l) - sum_t m_t(y^w)).

    With the generator ``lr`` it is DPO, up to the clamp of log R. Source: Kim et al. (2025),
    arXiv 2505.19601.
    """

    name: ClassVar[str] = "bpo"

    @property
    def requires(self) -> frozenset[Statistic]:
        """Nothing beyond log-probabilities."""
        return frozenset()

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        return self.matched(-self.beta * margin(chosen, rejected))
