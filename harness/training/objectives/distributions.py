"""Log-probabilities of tokens and divergences between next-token distributions, in nats."""

from __future__ import annotations

from torch import Tensor

from harness.training.objectives.bregman import LOG_RATIO_LIMIT


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return (..., T) log-probabilities, nats, of ``tokens`` (..., T) under (..., T, V) logits."""
    picked = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return picked - logits.logsumexp(-1)


def exact_kl(reference_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """Return (..., T) KL(pi_ref || pi_theta), nats, from (..., T, V) logits.

    With the two arguments exchanged, KL(pi_theta || pi_ref).
    """
    reference = reference_logits.log_softmax(-1)
    return (reference.exp() * (reference - policy_logits.log_softmax(-1))).sum(-1)


def k3(log_ratio: Tensor) -> Tensor:
    """K3 estimate of KL(pi_ref || pi_theta) from one token drawn by pi_ref, nats.

    (r - 1) - log r with r = pi_theta(a)/pi_ref(a), elementwise on log r, which is clamped to
    [-30, 30]. Source: Schulman (2020), "Approximating KL divergence"; used by TBPO-A in the
    TokenRatio paper.
    """
    clamped = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return clamped.expm1() - clamped
