"""Preference objectives as pure functions on per-token statistics; no model inside.

Notation of the TokenRatio paper (arXiv 2605.12288): prompt x, chosen response y^w, rejected
response y^l, per-token log-ratio m_t(y) = log pi_theta(y_t|s_t) - log pi_ref(y_t|s_t). Token-level
objectives see the first T = min(|y^w|, |y^l|) positions of both responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor
from torch.nn import functional as F

from harness.errors import InputError, unknown_name

LOG_RATIO_LIMIT = 30.0
"""log R is clamped to this magnitude before any exponential."""


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of B responses padded to T response positions.

    Attributes:
        policy: (B, T) log pi_theta of the observed tokens, nats.
        reference: (B, T) log pi_ref of the observed tokens, nats.
        mask: (B, T) bool, True where the response has a token.
        baseline: (B, T) b_phi(s_t) of TBPO-Q's head, nats; None for other objectives.
        kl: (B, T) exact KL(pi_ref || pi_theta) at each state, nats; None if not computed.
    """

    policy: Tensor
    reference: Tensor
    mask: Tensor
    baseline: Tensor | None = None
    kl: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """(B, T) m_t, zero where masked."""
        return (self.policy - self.reference).masked_fill(~self.mask, 0.0)


class Objective(Protocol):
    """A preference objective: chosen and rejected statistics to one loss per pair."""

    @property
    def needs_baseline(self) -> bool:
        """Whether the statistics must carry the baseline head's values."""
        ...

    @property
    def needs_kl(self) -> bool:
        """Whether the statistics must carry the exact divergence over the vocabulary."""
        ...

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        ...


Generator = Callable[[Tensor], Tensor]


def _logistic(log_r: Tensor) -> Tensor:
    return F.softplus(log_r)


def _kliep(log_r: Tensor) -> Tensor:
    return log_r.exp() + log_r


def _lsif(log_r: Tensor) -> Tensor:
    return (2 * log_r).exp() - 2 * (-log_r).exp()


def _ba(lam: float) -> Generator:
    if not -1 < lam < math.inf:
        raise InputError(f"generator 'ba' needs a finite lam > -1, got {lam}")
    if lam == 0:
        return _kliep
    return lambda log_r: ((lam + 1) * log_r).exp() - (lam + 1) / lam * (-lam * log_r).exp()


def _sba(lam: float, s: float) -> Generator:
    if not (-1 < lam < math.inf and 0 < s < math.inf):
        raise InputError(f"generator 'sba' needs finite lam > -1 and s > 0, got lam={lam}, s={s}")
    if lam == 0:
        return lambda log_r: (log_r.exp() + log_r) / s
    return lambda log_r: (
        ((lam + 1) * log_r).exp() / (s * (lam + 1)) - (-lam * log_r).exp() / (s * lam)
    )


def bregman(name: str = "sba", *, lam: float = 0.0, s: float = 4.0) -> Generator:
    """Return l_h as a function of log R for the Bregman generator ``name``.

    l_h(R) = h'(R) R - h(R) - h'(1/R) with additive constants dropped (TokenRatio paper):
    ``lr`` softplus(log R), of h = (R log R - (1+R) log(1+R))/2; ``kliep`` R + log R;
    ``lsif`` R^2 - 2/R;
    ``ba`` R^(lam+1) - ((lam+1)/lam) R^(-lam); ``sba`` R^(lam+1)/(s(lam+1)) - R^(-lam)/(s lam),
    whose limit lam -> 0 is (R + log R)/s. log R is clamped to [-30, 30].

    Raises:
        InputError: unknown generator, or lam <= -1, s <= 0 or one of them not finite where the
            generator has it.
    """
    known: dict[str, Generator] = {"lr": _logistic, "kliep": _kliep, "lsif": _lsif}
    if name == "ba":
        loss = _ba(lam)
    elif name == "sba":
        loss = _sba(lam, s)
    elif name in known:
        loss = known[name]
    else:
        raise unknown_name("generator", name, [*known, "ba", "sba"])
    return lambda log_r: loss(log_r.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def k3(log_ratio: Tensor) -> Tensor:
    """K3 estimate of KL(pi_ref || pi_theta) from one token drawn by pi_ref, nats.

    (r - 1) - log r with r = pi_theta(a)/pi_ref(a), elementwise on log r. Source: Schulman (2020),
    "Approximating KL divergence"; used by TBPO-A in the TokenRatio paper.
    """
    clamped = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return clamped.exp() - 1 - clamped


def _token_level(
    chosen: TokenStatistics,
    rejected: TokenStatistics,
    log_w: Tensor,
    mask: Tensor,
    beta: float,
    loss: Generator,
) -> Tensor:
    """(B,) losses (1/T) sum_t l_h(R_t), log R_t = beta (m_t(y^l) - m_t(y^w) + log w_t)."""
    log_r = beta * (rejected.log_ratio - chosen.log_ratio + log_w)
    losses = loss(log_r.masked_fill(~mask, 0.0)).masked_fill(~mask, 0.0)
    return losses.sum(-1) / mask.sum(-1).clamp(min=1)


def _check_positive(objective: str, option: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{objective} needs a finite {option} > 0, got {value}")


@dataclass(frozen=True)
class Dpo:
    """DPO: softplus(-beta (sum_t m_t(y^w) - sum_t m_t(y^l))).

    Source: Rafailov et al. (2023), arXiv 2305.18290, equation 7. ``label_smoothing`` is the
    conservative form with that probability of a flipped label.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs_baseline: bool = False
    needs_kl: bool = False

    def __post_init__(self) -> None:
        _check_positive("dpo", "beta", self.beta)
        if not 0 <= self.label_smoothing <= 0.5:
            raise InputError(f"dpo needs label_smoothing in [0, 0.5], got {self.label_smoothing}")

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        logits = self.beta * (chosen.log_ratio.sum(-1) - rejected.log_ratio.sum(-1))
        kept = 1 - self.label_smoothing
        return kept * F.softplus(-logits) + self.label_smoothing * F.softplus(logits)


@dataclass(frozen=True)
class TbpoQ:
    """TBPO-Q: token-level Bregman matching with a learnt state baseline.

    log w_t = b_phi(s_t^l) - b_phi(s_t^w), where b_phi estimates log Z of the state (TokenRatio
    paper, arXiv 2605.12288). ``centre`` subtracts the mean of log w over a pair's T positions and
    ``clamp`` limits its magnitude afterwards, as the public training code does; the paper does
    neither.
    """

    beta: float = 0.1
    generator: str = "sba"
    lam: float = 0.0
    s: float = 4.0
    centre: bool = False
    clamp: float | None = None
    needs_baseline: bool = True
    needs_kl: bool = False

    def __post_init__(self) -> None:
        _check_positive("tbpo-q", "beta", self.beta)
        if self.clamp is not None:
            _check_positive("tbpo-q", "clamp", self.clamp)
        bregman(self.generator, lam=self.lam, s=self.s)

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        if chosen.baseline is None or rejected.baseline is None:
            raise InputError("tbpo-q needs the baseline head's values for both responses")
        mask = chosen.mask & rejected.mask
        log_w = (rejected.baseline - chosen.baseline).masked_fill(~mask, 0.0)
        if self.centre:
            log_w = log_w - log_w.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        if self.clamp is not None:
            log_w = log_w.clamp(-self.clamp, self.clamp)
        loss = bregman(self.generator, lam=self.lam, s=self.s)
        return _token_level(chosen, rejected, log_w, mask, self.beta, loss)


@dataclass(frozen=True)
class TbpoA:
    """TBPO-A: token-level Bregman matching on advantages.

    log w_t = KL_t^l - KL_t^w with KL_t = KL(pi_ref(.|s_t) || pi_theta(.|s_t)) (TokenRatio paper,
    arXiv 2605.12288): ``k3`` estimates it from the observed token, ``exact`` sums over the
    vocabulary. The gradient flows through it.
    """

    beta: float = 0.1
    generator: str = "sba"
    lam: float = 0.0
    s: float = 4.0
    kl: Literal["k3", "exact"] = "k3"
    needs_baseline: bool = False

    def __post_init__(self) -> None:
        _check_positive("tbpo-a", "beta", self.beta)
        bregman(self.generator, lam=self.lam, s=self.s)
        if self.kl not in ("k3", "exact"):
            raise unknown_name("kl", self.kl, ["k3", "exact"])

    @property
    def needs_kl(self) -> bool:
        """Whether the exact divergence over the vocabulary must be computed."""
        return self.kl == "exact"

    def _divergence(self, side: TokenStatistics) -> Tensor:
        if self.kl == "k3":
            return k3(side.log_ratio)
        if side.kl is None:
            raise InputError("tbpo-a with kl='exact' needs the divergence over the vocabulary")
        return side.kl

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        mask = chosen.mask & rejected.mask
        log_w = self._divergence(rejected) - self._divergence(chosen)
        loss = bregman(self.generator, lam=self.lam, s=self.s)
        return _token_level(chosen, rejected, log_w.masked_fill(~mask, 0.0), mask, self.beta, loss)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return (..., T) log-probabilities, nats, of ``tokens`` (..., T) under (..., T, V) logits."""
    picked = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return picked - logits.logsumexp(-1)


def exact_kl(reference_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """Return (..., T) KL(pi_ref || pi_theta), nats, from (..., T, V) logits."""
    reference = reference_logits.log_softmax(-1)
    return (reference.exp() * (reference - policy_logits.log_softmax(-1))).sum(-1)
