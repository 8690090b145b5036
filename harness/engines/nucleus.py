"""Top-p (nucleus) truncation without sorting the vocabulary, for vLLM on a CPU.

vLLM sorts every row's whole vocabulary: half a second for 64 rows of 49k on one core, several
times the model's own step. But a nucleus of mass p holds no token less likely than (1 - p)/V: all
such tokens together weigh less than 1 - p. Only the few thousand others need sorting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from harness.engines import TOP_P_KEY
from harness.engines.rows import follow

if TYPE_CHECKING:
    from vllm.config import VllmConfig

Floats = NDArray[np.float32]


def truncate(logits: Floats, p: float) -> None:
    """Set (V,) logits outside the nucleus of mass ``p`` to minus infinity, in place.

    Keeps the smallest set of most likely tokens whose probabilities add up to at least ``p``, and
    always the likeliest token; tokens exactly as likely as the least one kept stay too (Holtzman
    et al., 2020, arXiv 1904.09751, section 3.1). In numpy, which starts no threads: rows are
    short, and threads would wait for each other.
    """
    weights = np.exp(logits - logits.max())
    total = weights.sum(dtype=np.float64)
    ascending = np.sort(weights[weights >= (1 - p) / len(logits) * total]).astype(np.float64)
    mass_up_to = total - ascending.sum() + ascending.cumsum()
    least = int(np.searchsorted(mass_up_to, (1 - p) * total, side="right"))
    logits[weights < ascending[min(least, len(ascending) - 1)]] = -np.inf


class NucleusFilter(LogitsProcessor):
    """Truncates the rows of requests that carry a top-p of their own, after temperature."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, float] = {}

    def is_argmax_invariant(self) -> bool:
        """Return True: the likeliest token is always kept, so greedy requests need no pass."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests through the batch."""
        follow(self.rows, batch_update, _top_p)

    def apply(self, logits: Tensor) -> Tensor:
        """Truncate (B, V) logits row by row, in place, and return them."""
        if not self.rows:
            return logits
        values = logits.numpy()
        for index, p in self.rows.items():
            truncate(values[index], p)
        return logits


def _top_p(params: SamplingParams, output: list[int]) -> float | None:
    value = (params.extra_args or {}).get(TOP_P_KEY)
    return None if value is None else float(value)
