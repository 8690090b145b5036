"""The engine on transformers' ``generate``: for machines without vLLM, and to check vLLM by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.engines import Completion, Failure, Request, TokenReading
from harness.engines.loading import best_device, load_model, release_memory
from harness.engines.reference import Continuation, TokenReader
from harness.engines.settings import GIB, EngineSettings, cache_bytes
from harness.errors import EngineDiedError, EngineError, InputError
from harness.prompts import checkpoint_tokenizer
from harness.types import Loadable

if TYPE_CHECKING:
    from harness.engines.row_sampler import Row

CACHE_SHARE = 0.5
"""Share of the memory beside the weights that the key-value cache may take on a GPU; the rest is
for activations and for the copy made when a layer's cache grows."""

UNUSED = ("quantization", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Settings that only vLLM can keep."""

SPOILED = "\ufffd"
"""Stands for bytes that are no character, such as those of one that was cut."""


class TransformersEngine:
    """One checkpoint at a time on one device, decoded by ``generate``.

    Answers end as vLLM's do: at the tokenizer's or the generation configuration's end tokens, or
    at the limit. Nothing else of a checkpoint's generation configuration is used.

    Args:
        settings: `max_num_seqs` bounds a batch; with ``deterministic`` each answer is computed
            alone, because a batch's shape changes rounding.
        seed: of the run; requests carry their own, which alone decide.

    Raises:
        InputError: a setting that only vLLM can keep.
    """

    def __init__(self, settings: EngineSettings, seed: int) -> None:
        _refuse_unused(settings)
        self.settings = settings
        self.seed = seed
        self._model: Any = None
        self._tokenizer: Any = None
        self._ends: frozenset[int] = frozenset()
        self._room = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, versions, device and settings."""
        return {**self.settings.identity("transformers"), "device": best_device()}

    def load(self, checkpoint: Loadable) -> bool:
        """Hold ``checkpoint``; the one before is freed first.

        Returns whether nothing was held before.

        Raises:
            EngineError: transformers cannot load it; nothing is held then.
            CheckpointError: its tokenizer cannot be read.
        """
        started = self._model is None
        self.close()
        tokenizer = checkpoint_tokenizer(checkpoint)
        model = load_model(checkpoint, checkpoint.spec.dtype)
        self._ends = end_tokens(model, tokenizer)
        # `generate` would merge in the checkpoint's own penalties and truncation.
        model.generation_config = _greedy()
        self._room = cache_tokens(model, self.settings)
        self._model, self._tokenizer = model, tokenizer
        return started

    def prompt_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities, nats, of each sequence's tokens but the first."""
        items = [
            Continuation(key=str(place), prompt=tuple(ids[:1]), answer=tuple(ids[1:]))
            for place, ids in enumerate(sequences)
        ]
        with self._working("reading log-probabilities"):
            found = dict(TokenReader(self._model).token_logprobs(items))
        return [found[item.key] for item in items]

    def token_readings(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[TokenReading]:
        """Return the readings of each sequence's tokens from its place in ``starts`` on."""
        items = [
            Continuation(key=str(place), prompt=tuple(ids[:start]), answer=tuple(ids[start:]))
            for place, (ids, start) in enumerate(zip(sequences, starts, strict=True))
        ]
        with self._working("reading given tokens"):
            found = dict(TokenReader(self._model).token_readings(items))
        return [found[item.key] for item in items]

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion | Failure]:
        """Yield one reply a request, batch by batch; batches depend on ``requests`` alone.

        Raises:
            EngineDiedError: the model failed.
        """
        for request in requests:
            if (reason := self._refusal(request)) is not None:
                yield Failure(key=request.key, reason=reason, final=True)
        rows = [self._row(r) for r in requests if self._refusal(r) is None]
        most = 1 if self.settings.deterministic else self.settings.max_num_seqs
        for group in group_rows(rows, most, self._room):
            with self._working("generating"):
                self._decode(group)
            for row in group:
                yield row.completion(self._text(row))

    def _refusal(self, request: Request) -> str | None:
        """Return why a request cannot be answered here; None where it can."""
        if not request.prompt:
            return "the prompt has no token"
        if len(request.prompt) >= self.settings.max_model_len:
            return (
                f"the prompt's {len(request.prompt)} tokens leave no room for an answer within "
                f"max_model_len {self.settings.max_model_len}"
            )
        return None

    def _row(self, request: Request) -> Row:
        from harness.engines.row_sampler import Row

        room = self.settings.max_model_len - len(request.prompt)
        limit = min(request.sampling.max_tokens, room)
        meets = self._meets_stop(request) if request.sampling.stop else None
        return Row(request, limit, self._ends, self.settings.entropy, meets_stop=meets)

    def _meets_stop(self, request: Request) -> Callable[[Sequence[int]], bool]:
        """Return what tells whether tokens of an answer hold one of the request's stop texts."""

        def meets(tokens: Sequence[int]) -> bool:
            answer = tokens[:-1] if tokens[-1] in self._ends else tokens
            text = self._answer_text(request, answer)
            return any(stop in text for stop in request.sampling.stop)

        return meets

    def _decode(self, rows: Sequence[Row]) -> None:
        """Let ``generate`` fill the rows of one batch."""
        from transformers import LogitsProcessorList, StoppingCriteriaList

        from harness.engines.row_sampler import RowSampler

        sampler = RowSampler(rows)
        tokens, attention = _left_padded([row.request.prompt for row in rows], self._model.device)
        self._model.generate(
            input_ids=tokens,
            attention_mask=attention,
            generation_config=_greedy(max(row.limit for row in rows)),
            logits_processor=LogitsProcessorList([sampler.process]),
            stopping_criteria=StoppingCriteriaList([sampler.finished]),
        )

    def _text(self, row: Row) -> str:
        """Return an answer as it follows its prompt, up to its end or the first stop text."""
        answer = row.tokens[:-1] if row.stopped else row.tokens
        text = self._answer_text(row.request, answer)
        stops = [text.find(stop) for stop in row.request.sampling.stop if stop in text]
        return text[: min(stops)] if stops else text

    def _answer_text(self, request: Request, answer: Sequence[int]) -> str:
        """Return the text of an answer's tokens; special ones only where texts to stop at are set.

        Decoded behind the prompt, because SentencePiece vocabularies drop a text's first space;
        bytes at the end that are no whole character yet are left out. vLLM's stream does both.
        """
        special = bool(request.sampling.stop)
        before = self._decoded(request.prompt, special)
        both = self._decoded((*request.prompt, *answer), special)
        if both.startswith(before):
            return both[len(before) :].rstrip(SPOILED)
        return self._decoded(answer, special).rstrip(SPOILED)

    def _decoded(self, ids: Sequence[int], special: bool = False) -> str:
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return str(text)

    @contextmanager
    def _working(self, doing: str) -> Iterator[None]:
        """Turn what transformers and torch raise while working into an EngineDiedError."""
        if self._model is None:
            raise EngineError(f"no checkpoint is loaded: {doing} needs one")
        try:
            yield
        except EngineError:
            raise
        except Exception as error:  # models raise whatever their authors chose
            raise EngineDiedError(
                f"transformers failed while {doing}: {type(error).__name__}: {error}. What was "
                "computed is kept; where memory ran out, set max_num_seqs lower."
            ) from error

    def close(self) -> None:
        """Free the checkpoint that is held; ``load`` may be called again."""
        if self._model is None:
            return
        self._model = self._tokenizer = None
        release_memory()


def _refuse_unused(settings: EngineSettings) -> None:
    plain = EngineSettings()
    for name in UNUSED:
        if getattr(settings, name) != getattr(plain, name):
            raise InputError(
                f"the transformers engine runs one unquantised model on one device; take "
                f"{name}={getattr(settings, name)} out of the engine's settings, or use vllm."
            )


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids at which an answer ends: the tokenizer's and the generation config's.

    The latter is made from the model's config where a checkpoint has none.
    """
    named = model.generation_config.eos_token_id
    ends = {named} if isinstance(named, int) else set(named or ())
    return frozenset(int(i) for i in {*ends, tokenizer.eos_token_id} if i is not None)


def _greedy(limit: int | None = None) -> Any:
    """Return a generation configuration of greedy decoding and nothing else."""
    from transformers import GenerationConfig

    make: Any = GenerationConfig
    return make(do_sample=False, max_new_tokens=limit)


def group_rows(rows: Sequence[Row], most: int, budget: int) -> list[list[Row]]:
    """Return batches of at most ``most`` rows and ``budget`` tokens, padding included.

    Longest limits first. No limit in a batch is below half its longest, so that no row waits
    long for the others; a row beyond the budget gets a batch of its own.
    """
    groups: list[list[Row]] = []
    longest = 0
    for row in sorted(rows, key=lambda r: (-r.limit, -len(r.request.prompt))):
        longest = max(longest, len(row.request.prompt))
        if groups and len(groups[-1]) < most:
            first = groups[-1][0].limit
            padded = (len(groups[-1]) + 1) * (longest + first)
            if padded <= budget and 2 * row.limit >= first:
                groups[-1].append(row)
                continue
        groups.append([row])
        longest = len(row.request.prompt)
    return groups


def cache_tokens(model: Any, settings: EngineSettings) -> int:
    """Return how many tokens' keys and values may be held together.

    On a GPU from its whole memory, not from what is free just now: batches must not depend on it.
    """
    import torch

    memory = settings.kv_cache_gib * GIB
    if model.device.type == "cuda":
        whole = torch.cuda.get_device_properties(model.device).total_memory
        beside = whole * settings.gpu_memory_utilization - _weight_bytes(model)
        memory = CACHE_SHARE * max(0.0, beside)
    return int(memory / cache_bytes(model.config, model.dtype.itemsize))


def _weight_bytes(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _left_padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """Return (B, L) token ids and their attention mask, prompts flush right."""
    import torch

    length = max(map(len, prompts))
    tokens = torch.zeros((len(prompts), length), dtype=torch.long, device=device)
    attention = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = torch.tensor(prompt, device=device)
        attention[row, length - len(prompt) :] = 1
    return tokens, attention
