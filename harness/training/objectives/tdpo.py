"""Token-level DPO: DPO with the divergence from the reference at every state.

Source: Zeng et al. (2024), arXiv 2404.11999. K(y) = sum_t KL(pi_ref || pi_theta) over the states of
y, exact over the vocabulary; M = sum_t m_t(y^w) - sum_t m_t(y^l).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from harness.training.objectives.base import Statistic, TokenStatistics, margin, read
from harness.training.objectives.checks import check_number


def _total_kl(side: TokenStatistics, objective: str) -> Tensor:
    """(B,) K(y), nats."""
    return read(side, Statistic.KL, objective).sum(-1)


@dataclass(frozen=True)
class Tdpo1:
    """TDPO1: softplus(-beta (M - (K(y^l) - K(y^w))))."""

    name: ClassVar[str] = "tdpo1"

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.name, "beta", self.beta, above=0)

    @property
    def requires(self) -> frozenset[Statistic]:
        """The divergence from the reference."""
        return frozenset({Statistic.KL})

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        drift = _total_kl(rejected, self.name) - _total_kl(chosen, self.name)
        return F.softplus(-self.beta * (margin(chosen, rejected) - drift))


@dataclass(frozen=True)
class Tdpo2:
    """TDPO2: softplus(-beta (M - alpha (K(y^l) - K(y^w)))), no gradient through K(y^w)."""

    name: ClassVar[str] = "tdpo2"

    beta: float = 0.1
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_number(self.name, "beta", self.beta, above=0)
        check_number(self.name, "alpha", self.alpha, low=0)

    @property
    def requires(self) -> frozenset[Statistic]:
        """The divergence from the reference."""
        return frozenset({Statistic.KL})

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        drift = _total_kl(rejected, self.name) - _total_kl(chosen, self.name).detach()
        return F.softplus(-self.beta * (margin(chosen, rejected) - self.alpha * drift))
