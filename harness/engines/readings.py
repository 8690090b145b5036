"""How far two readings of log-probabilities are from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain


def rms(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """Return the root-mean-square difference of two readings, nats a token.

    Raises:
        ValueError: they are not of the same number of tokens.
    """
    a, b = list(chain.from_iterable(first)), list(chain.from_iterable(second))
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))
