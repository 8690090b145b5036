"""TBPO: Bregman ratio matching on the tokens of both responses.

    log R_t = beta (m_t(y^l) - m_t(y^w) + log w_t),   loss of a pair = (1/T) sum_{t<=T} l_h(R_t)

w_t depends on the two prefixes only. Under the token-level Bradley-Terry model with scores
Q(s, a), the optimal policy is pi*(a|s) = pi_ref(a|s) exp(Q(s, a)/beta) / Z(s), and the data's ratio
is R_t at pi* with log w_t = log Z(s_t^l) - log Z(s_t^w). Source: TokenRatio (arXiv 2605.12288).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from harness.training.objectives.base import Statistic, TokenStatistics, masked_mean, read
from harness.training.objectives.bregman import RatioMatching
from harness.training.objectives.checks import check_choice, check_flag, check_number
from harness.training.objectives.distributions import k3


@dataclass(frozen=True)
class TokenRatioMatching(RatioMatching):
    """What TBPO-Q and TBPO-A share: the loss, given log w_t."""

    def token_losses(
        self, chosen: TokenStatistics, rejected: TokenStatistics, log_w: Tensor
    ) -> Tensor:
        """Return (B,) means of l_h(R_t) over the positions that both responses have.

        A pair without such a position has loss zero.
        """
        mask = chosen.mask & rejected.mask
        log_r = self.beta * (rejected.log_ratio - chosen.log_ratio + log_w)
        return masked_mean(self.matched(log_r), mask)


@dataclass(frozen=True)
class TbpoQ(TokenRatioMatching):
    """TBPO-Q: log w_t = b_phi(s_t^l) - b_phi(s_t^w); b_phi, a learnt head, estimates log Z.

    ``centre`` subtracts the mean of log w over a pair's T positions and ``clamp`` limits its
    magnitude afterwards, as the public training code does (with 10); the paper does neither, and
    with either the loss's minimum is not pi* in general. A constant added to b_phi at both states
    of a position changes nothing; one added at all states of one response changes nothing only with
    ``centre``.
    """

    name: ClassVar[str] = "tbpo-q"

    centre: bool = False
    clamp: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag(self.name, "centre", self.centre)
        if self.clamp is not None:
            check_number(self.name, "clamp", self.clamp, above=0)

    @property
    def requires(self) -> frozenset[Statistic]:
        """The baseline of both states."""
        return frozenset({Statistic.BASELINE})

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        mask = chosen.mask & rejected.mask
        baselines = (read(side, Statistic.BASELINE, self.name) for side in (rejected, chosen))
        log_w = next(baselines) - next(baselines)
        if self.centre:
            log_w = log_w - masked_mean(log_w, mask).unsqueeze(-1)
        if self.clamp is not None:
            log_w = log_w.clamp(-self.clamp, self.clamp)
        return self.token_losses(chosen, rejected, log_w)


@dataclass(frozen=True)
class TbpoA(TokenRatioMatching):
    """TBPO-A: log w_t = KL_t^l - KL_t^w, KL_t = KL(pi_ref(.|s_t) || pi_theta(.|s_t)).

    ``kl="k3"`` (the paper) estimates it from the observed token, ``kl="exact"`` (the public code)
    sums over the vocabulary. The gradient flows through it.
    """

    name: ClassVar[str] = "tbpo-a"

    kl: Literal["k3", "exact"] = "k3"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.name, "kl", self.kl, ("k3", "exact"))

    @property
    def requires(self) -> frozenset[Statistic]:
        """The exact divergence, where it is asked for."""
        return frozenset({Statistic.KL}) if self.kl == "exact" else frozenset()

    def _divergence(self, side: TokenStatistics) -> Tensor:
        if self.kl == "k3":
            return k3(side.log_ratio)
        return read(side, Statistic.KL, self.name)

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        log_w = self._divergence(rejected) - self._divergence(chosen)
        return self.token_losses(chosen, rejected, log_w)
