"""Token statistics inside vLLM: a logits processor and the worker's door to it.

vLLM builds the processor in its worker and calls it with the raw logits of every decoding step,
before temperature. Values are kept by request and by the number of output tokens so far, so that
a preempted and repeated step overwrites its earlier value instead of being counted twice. A
token is drawn after the processor has run, so its log-probability is read at the next step, from
the distribution that is held until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from harness.engines import FORCED_KEY, PROBE_KEY
from harness.engines.distribution import TOP, Floats, Step, row_step
from harness.engines.rows import follow

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def batch_steps(logits: Tensor) -> list[Step]:
    """Return the statistics of each row of (B, V) logits, on any device."""
    shifted = (logits - logits.amax(-1, keepdim=True)).float()
    weights = shifted.exp()
    total = weights.sum(-1)
    weighted = (weights * shifted.masked_fill(weights == 0, 0.0)).sum(-1)
    entropy = (total.log() - weighted / total).clamp(min=0.0)
    top = shifted.topk(min(TOP, shifted.shape[-1]), dim=-1).values
    share = top.softmax(-1)
    top_entropy = -(share * share.clamp(min=1e-30).log()).sum(-1)
    facts = torch.stack([total.log(), entropy, top_entropy], -1).tolist()
    return [Step(row, *values) for row, values in zip(shifted, facts, strict=True)]


@dataclass
class Trace:
    """What has been seen of one request, by the number of output tokens before each step."""

    entropies: dict[int, float] = field(default_factory=dict)
    entropies_top: dict[int, float] = field(default_factory=dict)
    logprobs: dict[int, float] = field(default_factory=dict)
    held: tuple[int, Step] | None = None
    spare: Floats | None = None

    def token_logit(self, output: list[int]) -> Any:
        """Return the shifted logit of the token that the held step led to; None if unknown."""
        if self.held is None or self.held[0] >= len(output):
            return None
        return self.held[1].shifted[output[self.held[0]]]

    def learn(self, shifted: float) -> None:
        """Keep the log-probability of the token whose shifted logit was read."""
        assert self.held is not None
        self.logprobs[self.held[0]] = self.held[1].logprob(shifted)

    def record(self, place: int, step: Step) -> None:
        """Keep a step's values and hold its distribution."""
        self.entropies[place] = step.entropy
        self.entropies_top[place] = step.entropy_top
        self.held = (place, step)

    def values(self) -> tuple[list[float], list[float], list[float]]:
        """Return log-probabilities, entropies and truncated entropies in token order."""
        kept = (self.logprobs, self.entropies, self.entropies_top)
        logprobs, entropies, top = ([found[i] for i in sorted(found)] for found in kept)
        return logprobs, entropies, top


def read_tokens(pairs: Iterable[tuple[Trace, list[int]]]) -> None:
    """Read the log-probability of each trace's latest token, of those whose token is known.

    Values on a device are fetched together: one by one, each would wait for the device.
    """
    found = [
        (trace, logit) for trace, out in pairs if (logit := trace.token_logit(out)) is not None
    ]
    if not found:
        return
    logits = [logit for _, logit in found]
    values = torch.stack(logits).tolist() if isinstance(logits[0], Tensor) else logits
    for (trace, _), value in zip(found, values, strict=True):
        trace.learn(float(value))


@dataclass(frozen=True)
class Row:
    """A request in the batch: its key, its growing output and the answer it is forced to give."""

    key: str
    output: list[int]
    forced: list[int] | None


class TokenProbe(LogitsProcessor):
    """Reads each step's distribution; leaves the logits as they are, forced answers apart."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, Row] = {}
        self.traces: dict[str, Trace] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False, or vLLM would skip the probe for greedy requests."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as vLLM removes, adds and moves them between rows of the batch."""
        follow(self.rows, batch_update, _row)

    def apply(self, logits: Tensor) -> Tensor:
        """Record the statistics of (B, V) logits and return them."""
        if not self.rows:
            return logits
        on_cpu = logits.device.type == "cpu"
        values: Any = logits.detach().float().numpy() if on_cpu else batch_steps(logits)
        seen = {index: self._trace(row.key) for index, row in self.rows.items()}
        read_tokens((seen[index], row.output) for index, row in self.rows.items())
        for index, row in self.rows.items():
            trace = seen[index]
            step = _cpu_step(values[index], trace) if on_cpu else values[index]
            trace.record(len(row.output), step)
            if row.forced is not None:
                _force(logits[index], row.forced, len(row.output))
        return logits

    def _trace(self, key: str) -> Trace:
        return self.traces.setdefault(key, Trace())

    def take(self, answers: dict[str, list[int]]) -> dict[str, tuple[list[float], ...]]:
        """Return and forget the values of finished requests, given the tokens of each."""
        done = {key: self.traces.pop(key) for key in answers if key in self.traces}
        read_tokens((trace, answers[key]) for key, trace in done.items())
        return {key: trace.values() for key, trace in done.items()}


def _cpu_step(logits: Floats, trace: Trace) -> Step:
    if trace.spare is None:
        trace.spare = np.empty_like(logits)
    return row_step(logits, trace.spare)


def _force(logits: Tensor, answer: list[int], place: int) -> None:
    """Leave of (V,) logits only the token that is due."""
    if place < len(answer):
        logits.fill_(-torch.inf)
        logits[answer[place]] = 0.0


def _row(params: SamplingParams, output: list[int]) -> Row | None:
    extra = params.extra_args or {}
    key = extra.get(PROBE_KEY)
    return None if key is None else Row(str(key), output, extra.get(FORCED_KEY))


class WorkerExtension:
    """Methods added to vLLM's worker, called through ``collective_rpc``."""

    model_runner: Any
    reload_weights: Callable[..., None]

    def take_statistics(self, answers: dict[str, list[int]]) -> dict[str, tuple[list[float], ...]]:
        """Return the statistics per token of finished requests and forget them."""
        for processor in self.model_runner.input_batch.logitsprocs.all:
            if isinstance(processor, TokenProbe):
                return processor.take(answers)
        return {}

    def exchange_weights(self, folder: str) -> None:
        """Read another checkpoint's weights, and make the output layer use them.

        On CPUs vLLM computes logits from a packed copy of the output layer. ``reload_weights``
        packs what it loads, but an output layer tied to the embedding is not in the checkpoint:
        it would go on with the copy of the checkpoint before.
        """
        self.reload_weights(weights_path=folder)
        for layer in self.model_runner.get_model().modules():
            method = getattr(layer, "quant_method", None)
            if isinstance(layer, ParallelLMHead) and isinstance(method, UnquantizedEmbeddingMethod):
                method.process_weights_after_loading(layer)
