"""One token's distribution in numpy: its statistics, its truncation, a draw from it.

Row by row, because a row stays in a core's cache and numpy starts no threads: on a small CPU that
is faster than torch, whose threads wait for each other between such short operations. No value
depends on what else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.types import Sampling

Floats = NDArray[np.float32]

TOP = 20
"""Tokens in the truncated entropy of the TokenRatio paper's public code."""

MASKED = np.float32(-1e4)
"""Stands for minus infinity: its exponential is zero, and so is the product of the two."""

STEPS_DOWN = (-4.0, -8.0, -16.0)
"""Distances below the maximum, nats, at which the likeliest tokens are looked for first."""


@dataclass(frozen=True)
class Step:
    """One step's distribution.

    Attributes:
        shifted: (V,) logits less their maximum.
        log_total: log of the sum of their exponentials.
        entropy: of the whole distribution, nats.
        entropy_top: of its ``TOP`` likeliest tokens, renormalised, nats.
    """

    shifted: Any
    log_total: float
    entropy: float
    entropy_top: float

    def logprob(self, shifted: float) -> float:
        """Return the log-probability, nats, of a token whose shifted logit is ``shifted``."""
        return min(0.0, shifted - self.log_total)


def row_step(logits: Floats, out: Floats) -> Step:
    """Return the statistics of the softmax of (V,) logits; ``out`` becomes the shifted logits.

    The entropy is log Z - sum p z, exactly.
    """
    np.subtract(logits, logits.max(), out=out)
    weights = np.exp(out)
    total = float(weights.sum())
    with np.errstate(invalid="ignore"):
        weighted = float(np.dot(weights, out))
    if np.isnan(weighted):  # zero times minus infinity, at tokens that are masked
        weighted = float(np.dot(weights, np.maximum(out, MASKED)))
    entropy = float(np.log(total)) - weighted / total
    return Step(out, float(np.log(total)), max(0.0, entropy), top_entropy(out))


def top_entropy(logits: NDArray[np.floating[Any]]) -> float:
    """Return the entropy, nats, of the ``TOP`` likeliest tokens, renormalised.

    Args:
        logits: (V,) log-weights, normalised or not, near or below zero.
    """
    for limit in STEPS_DOWN:
        near = logits[logits > limit]
        if len(near) >= TOP:
            break
    else:
        near = logits[np.isfinite(logits)]
    cut = max(0, len(near) - TOP)
    top = np.partition(near, cut)[cut:].astype(np.float64)
    weights = np.exp(top)
    total = weights.sum()
    return max(0.0, float(np.log(total) - (weights * top).sum() / total))


def truncate(logits: Floats, p: float) -> None:
    """Set (V,) logits outside the nucleus of mass ``p`` to minus infinity, in place.

    Keeps the smallest set of most likely tokens whose probabilities add up to at least ``p``, and
    always the likeliest token; tokens exactly as likely as the least one kept stay too (Holtzman
    et al., 2020, arXiv 1904.09751, section 3.1). No token less likely than (1 - p)/V is in a
    nucleus, since all such tokens together weigh less than 1 - p: only the others are sorted.
    """
    weights = np.exp(logits - logits.max())
    total = weights.sum(dtype=np.float64)
    ascending = np.sort(weights[weights >= (1 - p) / len(logits) * total]).astype(np.float64)
    mass_up_to = total - ascending.sum() + ascending.cumsum()
    least = int(np.searchsorted(mass_up_to, (1 - p) * total, side="right"))
    logits[weights < ascending[min(least, len(ascending) - 1)]] = -np.inf


def draw(logits: Floats, sampling: Sampling, rng: np.random.Generator) -> int:
    """Return a token of (V,) logits: the likeliest at temperature 0, else one drawn at random.

    Temperature first, then the nucleus of mass ``top_p`` of what it leaves. One uniform number is
    taken from ``rng`` for a draw and none otherwise.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits / np.float32(sampling.temperature)
    if sampling.top_p < 1:
        truncate(scaled, sampling.top_p)
    mass = np.exp(scaled - scaled.max()).cumsum(dtype=np.float64)
    return int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))
