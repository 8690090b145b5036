"""Random numbers of a comparison: a stream for each estimate, named by what it is about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.stats.bootstrap import named_stream


@dataclass(frozen=True)
class Resampling:
    """How intervals and permutations are drawn; adding an estimate changes no other one."""

    seed: int
    resamples: int

    def rng(self, *about: str) -> np.random.Generator:
        """Return the generator of the estimate that is about this."""
        return named_stream(self.seed, *about)
