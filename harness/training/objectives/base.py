"""What an objective reads and what it promises."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from torch import Tensor

from harness.errors import InputError


class Statistic(StrEnum):
    """What an objective needs, gradient included, beyond both models' log-probabilities.

    The value is the field of :class:`TokenStatistics` that carries it.
    """

    BASELINE = "baseline"
    """b_phi(s_t) of the baseline head."""
    KL = "kl"
    """KL(pi_ref || pi_theta) at each state, exact."""
    REVERSE_KL = "reverse_kl"
    """KL(pi_theta || pi_ref) at each state, exact."""
    TOKEN_WEIGHTS = "token_weights"
    """A given weight of each token."""


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of B responses at T positions, (B, T) each.

    Attributes:
        policy: log pi_theta of the observed tokens, nats.
        reference: log pi_ref of the observed tokens, nats.
        mask: bool, True where the response has a token.
        baseline, kl, reverse_kl (nats), token_weights: the :class:`Statistic` of that name, None
            where the objective does not require it.
    """

    policy: Tensor
    reference: Tensor
    mask: Tensor
    baseline: Tensor | None = None
    kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    token_weights: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """(B, T) m_t, nats, zero where masked."""
        return (self.policy - self.reference).masked_fill(~self.mask, 0.0)


class Objective(Protocol):
    """A preference objective: chosen and rejected statistics to one loss a pair."""

    @property
    def requires(self) -> frozenset[Statistic]:
        """The statistics that both sides must carry."""
        ...

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        ...


def read(side: TokenStatistics, statistic: Statistic, objective: str) -> Tensor:
    """Return a statistic of one side, (B, T), zero where masked.

    Raises:
        InputError: the statistic was not computed.
    """
    value: Tensor | None = getattr(side, statistic.value)
    if value is None:
        raise InputError(f"{objective} needs the {statistic.value} of both responses, got None")
    return value.masked_fill(~side.mask, 0.0)


def margin(chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
    """Return (B,) sum_t m_t(y^w) - sum_t m_t(y^l), nats: the implicit reward margin over beta."""
    return chosen.log_ratio.sum(-1) - rejected.log_ratio.sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return (B,) means of (B, T) values over the mask; zero for a row with an empty mask."""
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
