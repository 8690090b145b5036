"""Bregman ratio matching: generators, and the options that every member of the family has.

A generator h, strictly convex on (0, inf), gives the loss of a model ratio R

    l_h(R) = h'(R) R - h(R) - h'(1/R),

which, in expectation over preferences, is least where R is the data's ratio
p(y^l > y^w) / p(y^w > y^l). Sources: Bregman Preference Optimization (arXiv 2505.19601);
TokenRatio (arXiv 2605.12288).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.training.objectives.checks import check_choice, check_number

LOG_RATIO_LIMIT = 30.0
"""log R is clamped to this magnitude before any exponential."""

EXPONENT_LIMIT = 75.0
"""Largest exponent of a power of R: float32 ends at exp(88), and losses are summed."""

NEAR_ZERO = 1e-3
"""Magnitude of lam below which the power generators drop their diverging constant."""

VANISHED = 1e-15
"""Magnitude of lam below which it counts as zero: float32 cannot hold every smaller one."""

GENERATORS = ("lr", "kliep", "lsif", "ba", "sba")

Loss = Callable[[Tensor], Tensor]
"""log R to l_h(R), elementwise."""


def logistic(log_r: Tensor) -> Tensor:
    """Return log(1 + R): l_h of h = (R log R - (1+R) log(1+R)) / 2; DPO's loss."""
    return F.softplus(log_r)


def kliep(log_r: Tensor) -> Tensor:
    """Return R + log R: l_h of h = R log R - R."""
    return log_r.exp() + log_r


def lsif(log_r: Tensor) -> Tensor:
    """Return R^2 - 2/R: l_h of h = (R-1)^2, but for a constant."""
    return (2 * log_r).exp() - 2 * (-log_r).exp()


def power(lam: float) -> Loss:
    """Return the loss R^(lam+1)/(lam+1) - R^(-lam)/lam, of which BA and SBA are multiples.

    -R^(-lam)/lam is -1/lam plus (1 - R^(-lam))/lam, which tends to log R. The constant -1/lam is
    kept where abs(lam) >= 1e-3, as the sources print it, and dropped nearer to zero, where it would
    swallow the digits of the loss: there values join R + log R, their limit at lam = 0.
    Gradients are those of the printed loss for every lam.
    """
    constant = 0.0 if abs(lam) < NEAR_ZERO else -1 / lam
    limit = EXPONENT_LIMIT / (lam + 1)

    def loss(log_r: Tensor) -> Tensor:
        log_r = log_r.clamp(-limit, limit)
        tail = log_r if abs(lam) < VANISHED else torch.expm1(-lam * log_r) / -lam
        return ((lam + 1) * log_r).exp() / (lam + 1) + tail + constant

    return loss


def scaled(loss: Loss, factor: float) -> Loss:
    """Return ``factor`` times a loss."""
    return lambda log_r: factor * loss(log_r)


def check_generator(owner: str, name: str, lam: float, s: float) -> None:
    """Refuse a generator that does not exist, and a lam or s outside its range.

    Raises:
        InputError: it names ``owner``, option, value and what is allowed.
    """
    check_choice(owner, "generator", name, GENERATORS)
    check_number(owner, "lam", lam, above=-1)
    check_number(owner, "s", s, above=0)


def bregman(name: str = "sba", *, lam: float = 0.0, s: float = 4.0) -> Loss:
    """Return l_h as a function of log R for the Bregman generator ``name``.

    log R is clamped to [-30, 30]: beyond, loss and gradient stand still.

    ======  ===================================  ===================================
    name    h(R)                                 l_h(R)
    ======  ===================================  ===================================
    lr      (R log R - (1+R) log(1+R)) / 2       log(1+R)
    kliep   R log R - R                          R + log R
    lsif    (R-1)^2                              R^2 - 2/R
    ba      (R^(1+lam) - R) / lam                R^(lam+1) - ((lam+1)/lam) R^(-lam)
    sba     (R^(1+lam) - R) / (s lam (lam+1))    R^(lam+1)/(s(lam+1)) - R^(-lam)/(s lam)
    ======  ===================================  ===================================

    Additive constants are dropped. As lam -> 0, BA's gradient becomes that of KLIEP and SBA's that
    of KLIEP over s. Their values do so only after adding (lam+1)/lam and 1/(s lam), the diverging
    constants of the printed losses; where abs(lam) < 1e-3 this function has added them already
    (see :func:`power`), and lam = 0 is the limit. Only ba and sba read lam, only sba reads s.

    Raises:
        InputError: unknown generator, lam <= -1, s <= 0, or one of them not finite.
    """
    check_generator("bregman", name, lam, s)
    losses: dict[str, Loss] = {
        "lr": logistic,
        "kliep": kliep,
        "lsif": lsif,
        "ba": scaled(power(lam), lam + 1),
        "sba": scaled(power(lam), 1 / s),
    }
    loss = losses[name]
    return lambda log_r: loss(log_r.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


@dataclass(frozen=True)
class RatioMatching:
    """Options of an objective that matches ratios: beta > 0 and a generator (:func:`bregman`)."""

    name: ClassVar[str] = "ratio matching"

    beta: float = 0.1
    generator: str = "sba"
    lam: float = 0.0
    s: float = 4.0

    def __post_init__(self) -> None:
        check_number(self.name, "beta", self.beta, above=0)
        check_generator(self.name, self.generator, self.lam, self.s)

    def matched(self, log_r: Tensor) -> Tensor:
        """Return l_h(R) elementwise on log R."""
        return bregman(self.generator, lam=self.lam, s=self.s)(log_r)
