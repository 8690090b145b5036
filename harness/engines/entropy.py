"""Exact predictive entropy inside vLLM: a logits processor and the worker's door to it.

vLLM builds the processor in its worker and calls it with the raw logits of every decoding step,
before temperature. Values are kept by request and by the number of output tokens so far, so that
a preempted and repeated step overwrites its earlier value instead of being counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from harness.engines import ENTROPY_KEY
from harness.engines.rows import follow

if TYPE_CHECKING:
    from vllm.config import VllmConfig

Floats = NDArray[np.float32]


def row_entropy(logits: Floats) -> float:
    """Return the entropy, nats, of the softmax of (V,) logits: log Z - sum p z, exactly.

    One row at a time stays in a core's cache, and numpy starts no threads: on a small CPU that is
    faster than torch, whose threads wait for each other between such short operations.
    """
    shifted = logits - logits.max()
    weights = np.exp(shifted)
    total = weights.sum(dtype=np.float64)
    shifted[weights == 0] = 0
    np.multiply(weights, shifted, out=weights)
    return max(0.0, float(np.log(total) - weights.sum(dtype=np.float64) / total))


def batch_entropy(logits: Tensor) -> Tensor:
    """Return (B,) entropies, nats, of (B, V) logits on any device."""
    shifted = (logits - logits.amax(-1, keepdim=True)).float()
    weights = shifted.exp()
    total = weights.sum(-1)
    weighted = (weights * shifted.masked_fill(weights == 0, 0.0)).sum(-1)
    return (total.log() - weighted / total).clamp(min=0.0)


def entropies(logits: Tensor, rows: Iterable[int]) -> dict[int, float]:
    """Return row index -> entropy, nats, for the given rows of (B, V) logits."""
    wanted = list(rows)
    if logits.device.type == "cpu":
        values = logits.detach().float().numpy()
        return {row: row_entropy(values[row]) for row in wanted}
    found = batch_entropy(logits).tolist()
    return {row: found[row] for row in wanted}


class EntropyProbe(LogitsProcessor):
    """Reads the entropy of each step's distribution and leaves the logits as they are."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, tuple[str, list[int]]] = {}
        self.values: dict[str, dict[int, float]] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False, or vLLM would skip the probe for greedy requests."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as vLLM removes, adds and moves them between rows of the batch."""
        follow(self.rows, batch_update, _key)

    def apply(self, logits: Tensor) -> Tensor:
        """Record the entropies of (B, V) logits and return the logits unchanged."""
        if self.rows:
            found = entropies(logits, self.rows)
            for index, (key, output) in self.rows.items():
                self.values.setdefault(key, {})[len(output)] = found[index]
        return logits

    def take(self, keys: list[str]) -> dict[str, list[float]]:
        """Return and forget the values of ``keys``, in token order."""
        taken = {key: self.values.pop(key, {}) for key in keys}
        return {key: [steps[i] for i in sorted(steps)] for key, steps in taken.items()}


def _key(params: SamplingParams, output: list[int]) -> tuple[str, list[int]] | None:
    key = (params.extra_args or {}).get(ENTROPY_KEY)
    return None if key is None else (str(key), output)


class EntropyWorker:
    """Methods added to vLLM's worker, called through ``collective_rpc``."""

    model_runner: Any

    def take_entropies(self, keys: list[str]) -> dict[str, list[float]]:
        """Return the entropies per token of finished requests and forget them."""
        for processor in self.model_runner.input_batch.logitsprocs.all:
            if isinstance(processor, EntropyProbe):
                return processor.take(keys)
        return {}
