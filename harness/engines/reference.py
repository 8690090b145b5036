"""Independent readings with transformers in float32: log-probabilities of given answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from harness.engines.batching import batches
from harness.types import Loadable, Record

TOKENS_A_BATCH = 4096
"""Padded tokens in one forward pass: bounds memory and keeps the matrix products large."""


class Continuation(Record):
    """A prompt and the tokens whose log-probability is asked."""

    key: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class ReferenceModel:
    """A causal language model in float32 that scores given tokens."""

    def __init__(self, checkpoint: Loadable) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
        self._model = model.to(self._device).eval()

    def token_logprobs(self, items: Sequence[Continuation]) -> Iterator[tuple[str, list[float]]]:
        """Yield (key, log-probabilities in nats of the answer's tokens) for every item."""
        lengths = [len(item.prompt) + len(item.answer) for item in items]
        for group in batches(lengths, TOKENS_A_BATCH):
            yield from self._score([items[i] for i in group])

    def _score(self, batch: Sequence[Continuation]) -> list[tuple[str, list[float]]]:
        import torch

        length = max(len(c.prompt) + len(c.answer) for c in batch)
        tokens = torch.zeros((len(batch), length), dtype=torch.long, device=self._device)
        attention = torch.zeros_like(tokens)
        for row, item in enumerate(batch):
            both = torch.tensor([*item.prompt, *item.answer], device=self._device)
            tokens[row, : len(both)] = both
            attention[row, : len(both)] = 1
        with torch.inference_mode():
            backbone = self._model.get_decoder()
            states = backbone(input_ids=tokens, attention_mask=attention).last_hidden_state
            return [self._row(item, states[row], tokens[row]) for row, item in enumerate(batch)]

    def _row(self, item: Continuation, states: Any, tokens: Any) -> tuple[str, list[float]]:
        start, end = len(item.prompt), len(item.prompt) + len(item.answer)
        logits = self._model.get_output_embeddings()(states[start - 1 : end - 1]).float()
        picked = logits.gather(-1, tokens[start:end].unsqueeze(-1)).squeeze(-1)
        return item.key, (picked - logits.logsumexp(-1)).tolist()


def answer_sums(
    model: ReferenceModel,
    items: Sequence[Continuation],
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Return the summed log-probability, nats, of each item's answer, by key."""
    sums = {}
    for key, values in model.token_logprobs(items):
        sums[key] = sum(values)
        if on_progress is not None:
            on_progress(1)
    return sums
