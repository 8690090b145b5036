"""Readings of given tokens with transformers: log-probabilities, and divergence from a base.

Final hidden states of a batch are computed at once, logits for a chunk of positions at a time, so
that memory does not grow with batch times vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.engines import TokenReading
from harness.engines.batching import batches
from harness.engines.loading import best_device, load_model, release_memory
from harness.errors import EngineError
from harness.types import Dtype, Loadable, Record

TOKENS_A_BATCH = 4096
"""Padded tokens in one forward pass: bounds memory and keeps the matrix products large."""

TOKENS_WITH_LOGITS = 1024
"""The same where the model must make the logits of all positions itself."""

POSITIONS = 256
"""Positions whose logits over the vocabulary are held at once."""

HEAD_TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit, between a model's logits and its head's."""


class Continuation(Record):
    """A prompt and the tokens whose log-probability is asked."""

    key: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return (*self.prompt, *self.answer)


class Divergence(Record):
    """How two models differ at one token of an answer.

    Attributes:
        kl: KL(p || q) of the next-token distributions before the token, nats, >= 0.
        log_ratio: log p - log q of the token itself, nats; its mean over tokens drawn from p is
            the divergence, and one value may be negative.
    """

    kl: float
    log_ratio: float


class TokenReader:
    """Reads given tokens with a model that is held already.

    Args:
        model: a transformers model for causal language modelling, its dropout off.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._factored = _head_makes_all(model)

    @property
    def vocabulary(self) -> int:
        """Width of the logits, padding included."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    @property
    def budget(self) -> int:
        """Padded tokens in one forward pass."""
        return TOKENS_A_BATCH if self._factored else TOKENS_WITH_LOGITS

    def token_logprobs(self, items: Sequence[Continuation]) -> Iterator[tuple[str, list[float]]]:
        """Yield (key, log-probabilities in nats of the answer's tokens) for every item."""
        for batch in _batches(items, self.budget):
            states = self.states(batch)
            for row, item in enumerate(batch):
                yield item.key, self._logprobs(item, states[row])

    def _logprobs(self, item: Continuation, states: Any) -> list[float]:
        found: list[float] = []
        for places, targets in _chunks(item, states.device):
            logits = self.log_probabilities(states[places])
            found += logits.gather(-1, targets).squeeze(-1).tolist()
        return found

    def token_readings(self, items: Sequence[Continuation]) -> Iterator[tuple[str, TokenReading]]:
        """Yield (key, readings of the answer's tokens) for every item."""
        for batch in _batches(items, self.budget):
            states = self.states(batch)
            for row, item in enumerate(batch):
                yield item.key, self._reading(item, states[row])

    def _reading(self, item: Continuation, states: Any) -> TokenReading:
        logprobs: list[float] = []
        likeliest: list[bool] = []
        for places, targets in _chunks(item, states.device):
            every = self.log_probabilities(states[places])
            taken = every.gather(-1, targets)
            logprobs += taken.squeeze(-1).tolist()
            likeliest += (every.amax(-1, keepdim=True) <= taken).squeeze(-1).tolist()
        return TokenReading(logprobs=tuple(logprobs), likeliest=tuple(likeliest))

    def divergences(
        self, base: TokenReader, items: Sequence[Continuation]
    ) -> Iterator[tuple[str, list[Divergence]]]:
        """Yield (key, divergence from ``base`` at each of the answer's tokens) for every item.

        Exact over the vocabulary, which both models must share.
        """
        for batch in _batches(items, min(self.budget, base.budget)):
            own, other = self.states(batch), base.states(batch)
            for row, item in enumerate(batch):
                found: list[Divergence] = []
                for places, targets in _chunks(item, own.device):
                    p = self.log_probabilities(own[row, places])
                    q = base.log_probabilities(other[row, places])
                    found += _divergences(p, q, targets)
                yield item.key, found

    def states(self, batch: Sequence[Continuation]) -> Any:
        """Return (B, L, D) of right-padded sequences: what `log_probabilities` takes."""
        import torch

        length = max(len(item.tokens) for item in batch)
        tokens = torch.zeros((len(batch), length), dtype=torch.long, device=self._model.device)
        attention = torch.zeros_like(tokens)
        for row, item in enumerate(batch):
            both = torch.tensor(item.tokens, device=tokens.device)
            tokens[row, : len(both)] = both
            attention[row, : len(both)] = 1
        inputs = {"input_ids": tokens, "attention_mask": attention, "use_cache": False}
        with torch.inference_mode():
            if self._factored:
                return self._model.get_decoder()(**inputs).last_hidden_state
            return self._model(**inputs).logits

    def log_probabilities(self, states: Any) -> Any:
        """Return (N, V) log-probabilities, float32 nats, of (N, D) states."""
        import torch

        with torch.inference_mode():
            made = self._model.get_output_embeddings()(states) if self._factored else states
            return made.float().log_softmax(-1)


class ReferenceModel(TokenReader):
    """A checkpoint in float32: the independent reading that an engine is held against.

    Raises, wherever the model is asked:
        EngineError: it failed, often for want of memory.
    """

    def __init__(self, checkpoint: Loadable) -> None:
        self._name = checkpoint.spec.name
        model = load_model(checkpoint, Dtype.FLOAT32)
        with self._asking():
            super().__init__(model)

    def states(self, batch: Sequence[Continuation]) -> Any:
        """As in TokenReader."""
        with self._asking():
            return super().states(batch)

    def log_probabilities(self, states: Any) -> Any:
        """As in TokenReader."""
        with self._asking():
            return super().log_probabilities(states)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # torch and each model's own code raise classes of their own
            raise EngineError(
                f"reading '{self._name}' in float32 on {best_device()} failed: "
                f"{type(error).__name__}: {error}. What was computed is kept; free memory and run "
                "the same command again."
            ) from error

    def close(self) -> None:
        """Give the model's memory back; nothing can be read after it."""
        self._model = None
        release_memory()


def _head_makes_all(model: Any) -> bool:
    """Whether logits are output layer times final state: no cap (Gemma 2), no scale (Cohere)."""
    import torch

    with torch.inference_mode():
        probe = torch.arange(1, 5, device=model.device).unsqueeze(0)
        own = model(input_ids=probe, use_cache=False).logits.float()
        states = model.get_decoder()(input_ids=probe, use_cache=False).last_hidden_state
        made = model.get_output_embeddings()(states).float()
    if made.shape != own.shape:
        return False
    return bool((made - own).abs().max() <= HEAD_TOLERANCE * own.abs().max())


def _batches(items: Sequence[Continuation], budget: int) -> Iterator[list[Continuation]]:
    for group in batches([len(item.tokens) for item in items], budget):
        yield [items[i] for i in group]


def _chunks(item: Continuation, device: Any) -> Iterator[tuple[slice, Any]]:
    """Yield the N places before some of the answer's tokens, and (N, 1) those tokens."""
    import torch

    for first in range(0, len(item.answer), POSITIONS):
        part = item.answer[first : first + POSITIONS]
        start = len(item.prompt) - 1 + first
        yield slice(start, start + len(part)), torch.tensor(part, device=device).unsqueeze(-1)


def _divergences(p: Any, q: Any, targets: Any) -> list[Divergence]:
    """Return the divergences of (N, V) log-probabilities at (N, 1) tokens."""
    weights = p.exp()
    # A token that p rules out counts nothing; zero times infinity would be NaN.
    kl = (weights * (p - q)).masked_fill_(weights == 0, 0.0).sum(-1).clamp(min=0.0)
    ratios = (p.gather(-1, targets) - q.gather(-1, targets)).squeeze(-1)
    pairs = zip(kl.tolist(), ratios.tolist(), strict=True)
    return [Divergence(kl=one, log_ratio=other) for one, other in pairs]


def answer_sums(
    model: TokenReader,
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
