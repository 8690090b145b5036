"""Top-p (nucleus) truncation without sorting the vocabulary, for vLLM on a CPU.

vLLM sorts every row's whole vocabulary: half a second for 64 rows of 49k on one core, several
times the model's own step. But a nucleus of mass p holds no token less likely than (1 - p)/V: all
such tokens together weigh less than 1 - p. Only the few thousand others need sorting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from harness.engines import TOP_P_KEY
from harness.engines.distribution import truncate
from harness.engines.rows import follow

if TYPE_CHECKING:
    from vllm.config import VllmConfig


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
