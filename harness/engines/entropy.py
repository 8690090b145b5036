"""Exact predictive entropy inside vLLM: a logits processor and the worker's door to it.

vLLM builds the processor in its worker and calls it with the raw logits of every decoding step,
before temperature. Values are kept by request and by the number of output tokens so far, so that
a preempted and repeated step overwrites its earlier value instead of being counted twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

if TYPE_CHECKING:
    from vllm.config import VllmConfig

KEY = "tbpo_key"
"""Name of the request's key in ``SamplingParams.extra_args``."""

ROWS = 4
"""Rows worked on at once on a CPU: 4 x 49k float32 values stay in a core's cache."""


def entropy(logits: Tensor) -> Tensor:
    """Return (B,) entropies, nats, of the softmax of (B, V) logits: log Z - sum p z."""
    shifted = (logits - logits.amax(-1, keepdim=True)).float()
    weights = shifted.exp()
    total = weights.sum(-1)
    return total.log() - (weights * shifted).nan_to_num(0.0).sum(-1) / total


def entropy_in_blocks(logits: Tensor) -> Tensor:
    """Return (B,) entropies of (B, V) logits, in blocks of rows where the logits are on a CPU."""
    if logits.device.type != "cpu":
        return entropy(logits)
    return torch.cat([entropy(block) for block in torch.split(logits, ROWS)])


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
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.rows.pop(index, None)
        for index, params, _, output in batch_update.added:
            self.rows.pop(index, None)
            key = (params.extra_args or {}).get(KEY)
            if key is not None:
                self.rows[index] = (key, output)
        for source, target, direction in batch_update.moved:
            moved, replaced = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if direction == MoveDirectionality.SWAP and replaced is not None:
                self.rows[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        """Record the entropies of (B, V) logits and return the logits unchanged."""
        if self.rows:
            found = entropy_in_blocks(logits).tolist()
            for index, (key, output) in self.rows.items():
                self.values.setdefault(key, {})[len(output)] = found[index]
        return logits

    def take(self, keys: list[str]) -> dict[str, list[float]]:
        """Return and forget the values of ``keys``, in token order."""
        taken = {key: self.values.pop(key, {}) for key in keys}
        return {key: [steps[i] for i in sorted(steps)] for key, steps in taken.items()}


class EntropyWorker:
    """Methods added to vLLM's worker, called through ``collective_rpc``."""

    model_runner: Any

    def take_entropies(self, keys: list[str]) -> dict[str, list[float]]:
        """Return the entropies per token of finished requests and forget them."""
        for processor in self.model_runner.input_batch.logitsprocs.all:
            if isinstance(processor, EntropyProbe):
                return processor.take(keys)
        return {}
