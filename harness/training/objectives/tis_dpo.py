"""TIS-DPO: DPO with an importance weight for every token, and the weights.

Source: Liu et al. (2024), arXiv 2410.04350.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from harness.training.objectives.base import Statistic, TokenStatistics, read
from harness.training.objectives.checks import check_number


@dataclass(frozen=True)
class TisDpo:
    """TIS-DPO: softplus(-beta (M(y^w) - M(y^l) - alpha (K(y^w) - K(y^l)))).

    M(y) = sum_t w_t m_t(y) and K(y) = sum_t w_t KL(pi_theta || pi_ref) at the states of y. With
    ``alpha`` 0 there are no divergences; where the public TBPO code has them, alpha is 0.5. Mind
    direction and sign of the divergence: TDPO has the other of both.
    """

    name: ClassVar[str] = "tis-dpo"

    beta: float = 0.1
    alpha: float = 0.0

    def __post_init__(self) -> None:
        check_number(self.name, "beta", self.beta, above=0)
        check_number(self.name, "alpha", self.alpha, low=0)

    @property
    def requires(self) -> frozenset[Statistic]:
        """The token weights, and the divergence where ``alpha`` is not zero."""
        weights = frozenset({Statistic.TOKEN_WEIGHTS})
        return weights | {Statistic.REVERSE_KL} if self.alpha else weights

    def _value(self, side: TokenStatistics) -> Tensor:
        """(B,) M(y) - alpha K(y), nats."""
        value = side.log_ratio
        if self.alpha:
            value = value - self.alpha * read(side, Statistic.REVERSE_KL, self.name)
        return (read(side, Statistic.TOKEN_WEIGHTS, self.name) * value).sum(-1)

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        return F.softplus(-self.beta * (self._value(chosen) - self._value(rejected)))


def contrastive_weight(
    positive: Tensor,
    negative: Tensor,
    *,
    mu: float,
    k: float = 1.0,
    low: float = -0.5,
    high: float = 1.5,
) -> Tensor:
    """Return w = k exp(mu clamp(log p+ - log p-, low, high)) of each token.

    Args:
        positive, negative: log p+ and log p- of the observed tokens, nats, of one shape: from a
            model that leans to chosen answers and one that leans to rejected ones.
        mu: above zero for tokens of a chosen response, below zero for those of a rejected one.
        k: scale. low, high: limits of the log-ratio, nats; -0.5 and 1.5 in the paper.

    Raises:
        InputError: a number that is not finite, k not above zero, or low above high.
    """
    check_number("contrastive_weight", "mu", mu)
    check_number("contrastive_weight", "k", k, above=0)
    check_number("contrastive_weight", "high", high)
    check_number("contrastive_weight", "low", low, high=high)
    return k * (mu * (positive - negative).clamp(low, high)).exp()
