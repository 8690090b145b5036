"""Preference objectives as pure functions on per-token statistics; no model inside.

Notation of the TokenRatio paper (arXiv 2605.12288): prompt x, chosen response y^w, rejected
response y^l, per-token log-ratio m_t(y) = log pi_theta(y_t|s_t) - log pi_ref(y_t|s_t). Token-level
objectives see the positions that both responses have, T = min(|y^w|, |y^l|) where both start at
the first one.

An objective is a frozen dataclass in a file of its own, registered in the entry-point group
``tbpo.objectives``. Its fields are the user's options; what it must implement is
:class:`Objective`. This package imports none of them until one is asked for by name.
"""

from __future__ import annotations

from harness.training.objectives.base import Objective, Statistic, TokenStatistics
from harness.training.objectives.bregman import bregman
from harness.training.objectives.build import build_objective
from harness.training.objectives.distributions import exact_kl, k3, token_logprobs

__all__ = [
    "Objective",
    "Statistic",
    "TokenStatistics",
    "bregman",
    "build_objective",
    "exact_kl",
    "k3",
    "token_logprobs",
]
