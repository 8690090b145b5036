"""Sampling inside transformers' ``generate``, each row from a random stream of its own.

``generate`` itself decodes greedily: the sampler leaves it one token a row. So a row's draws
depend on its own logits and its own request's seed, and not on the other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from harness.engines import Completion, Request, TokenStatistics
from harness.engines.distribution import Floats, Step, draw, row_step
from harness.errors import EngineDiedError
from harness.types import FinishReason


@dataclass
class Row:
    """A request in the batch and what has been generated of its answer.

    Attributes:
        limit: most tokens of the answer.
        ends: tokens that end it.
        watched: whether statistics are kept.
        meets_stop: whether the tokens so far hold a text at which the answer is to stop.
    """

    request: Request
    limit: int
    ends: frozenset[int]
    watched: bool
    tokens: list[int] = field(default_factory=list)
    steps: list[tuple[float, float, float]] = field(default_factory=list)
    meets_stop: Callable[[Sequence[int]], bool] | None = None
    met_stop: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.request.seed)

    @property
    def stopped(self) -> bool:
        """Whether the last token ends the answer."""
        return bool(self.tokens) and self.tokens[-1] in self.ends

    @property
    def done(self) -> bool:
        """Whether no token is to follow."""
        return self.stopped or self.met_stop or len(self.tokens) >= self.limit

    def extend(self, logits: Floats) -> int:
        """Choose the next token from (V,) logits, keep it with its statistics, and return it."""
        token = draw(logits, self.request.sampling, self.rng)
        if self.watched:
            self._watch(row_step(logits, np.empty_like(logits)), token)
        self.tokens.append(token)
        if self.meets_stop is not None:
            self.met_stop = self.meets_stop(self.tokens)
        return token

    def _watch(self, step: Step, token: int) -> None:
        logprob = step.logprob(float(step.shifted[token]))
        self.steps.append((logprob, step.entropy, step.entropy_top))

    def completion(self, text: str) -> Completion:
        """Return the finished answer, whose text is given."""
        logprobs, entropies, top = zip(*self.steps, strict=True) if self.steps else ((), (), ())
        return Completion(
            key=self.request.key,
            text=text,
            finish_reason=(
                FinishReason.STOP if self.stopped or self.met_stop else FinishReason.LENGTH
            ),
            tokens=len(self.tokens),
            prompt_tokens=len(self.request.prompt),
            token_ids=tuple(self.tokens),
            statistics=TokenStatistics(logprobs=logprobs, entropies=entropies, entropies_top20=top),
        )


class RowSampler:
    """Logits processor and stopping criterion of one batch, as ``generate`` calls them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def process(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Choose a token for every unfinished row of (B, V) raw logits; rule all others out.

        Raises:
            EngineDiedError: a row has no distribution (NaN).
        """
        values = scores.float().cpu().numpy()
        chosen = [self._next(row, values[place]) for place, row in enumerate(self.rows)]
        index = torch.tensor(chosen, device=scores.device).unsqueeze(-1)
        return torch.full_like(scores, -torch.inf).scatter_(-1, index, 0.0)

    def _next(self, row: Row, logits: Floats) -> int:
        if row.done:
            return 0  # What follows an answer is never read.
        if not np.isfinite(logits.max()):
            raise EngineDiedError(
                f"the model gave no distribution (NaN) after {len(row.tokens)} tokens of an "
                "answer. Its numbers may be too large for float16: try dtype=float32 or bfloat16."
            )
        return row.extend(logits)

    def finished(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Return (B,) which rows are done."""
        return torch.tensor([row.done for row in self.rows], device=input_ids.device)
