"""A model of lm-eval's kind over an engine that holds a checkpoint.

It asks as lm-eval's own vLLM model does with its default arguments, so that the numbers are the
same: prompts are tokenised with the tokenizer's own special tokens (not twice), cut on the left to
the longest length, and generation stops at the task's texts and at the end of sequence.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, TypeAlias

from lm_eval.api.model import TemplateLM  # type: ignore[import-untyped]
from lm_eval.models.utils import (  # type: ignore[import-untyped]
    configure_pad_token,
    handle_stop_sequences,
    has_bos_prefix,
    maybe_truncate,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import (  # type: ignore[import-untyped]
    get_rolling_token_windows,
    make_disjoint_window,
)

from harness.engines import Completion, Engine, Failure, RankedEngine, Request
from harness.errors import EngineError, InputError
from harness.progress import bar
from harness.prompts import TODAY, checkpoint_tokenizer
from harness.types import Loadable, Sampling

MAX_GENERATED = 256
"""Tokens of an answer where a task does not say: lm-eval's default."""

TOGETHER = 1024
"""Sequences handed to an engine at once, where its settings do not say."""

KNOWN_ARGUMENTS = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p"})
"""Arguments of generation that are kept; others are refused."""

Ids: TypeAlias = "array[int]"
"""Token ids in four bytes each: a full evaluation holds a hundred million."""

Pair = tuple[Any, Sequence[int], Sequence[int]]
"""What lm-eval asks the likelihood of: a key, the context's tokens, the continuation's."""


class EngineLM(TemplateLM):  # type: ignore[misc]
    """The checkpoint that an engine holds, as lm-eval asks models.

    Args:
        engine: holds ``checkpoint``; its log-probabilities can be read with ranks.
        max_model_len: longest prompt plus answer, in tokens.
        suite: named in the keys of requests.
        seed: of the random streams of tasks that sample.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoint: Loadable,
        *,
        max_model_len: int,
        suite: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.checkpoint = checkpoint
        self.tokenizer = configure_pad_token(checkpoint_tokenizer(checkpoint))
        self.suite = suite
        self.seed = seed
        self._cut: set[str | bytes] = set()
        self._max_length = max_model_len
        self._shown_on = sys.stderr

    @property
    def cut(self) -> int:
        """Different prompts that were cut on the left, so far."""
        return len(self._cut)

    # -- what lm-eval wants to know ----------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end of sequence."""
        found: int = self.tokenizer.eos_token_id
        return found

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is read after: the beginning of sequence, else its end."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def max_length(self) -> int:
        """Longest prompt plus answer, in tokens."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Most tokens of an answer where a task does not say."""
        return MAX_GENERATED

    @property
    def tokenizer_name(self) -> str:
        """The checkpoint's name: lm-eval names its caches by it."""
        return self.checkpoint.spec.name

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval's results say of the model."""
        return {
            "model": self.checkpoint.spec.name,
            "model_dtype": str(self.checkpoint.spec.dtype),
            "weights_sha256": self.checkpoint.weights_sha256,
            "engine": dict(self.engine.identity),
            "max_length": self.max_length,
            "prompts_cut": self.cut,
        }

    def tok_encode(
        self,
        string: str | Sequence[str],
        add_special_tokens: bool | None = None,
        **options: Any,
    ) -> Any:
        """Return the token ids of a text, or of each of several.

        Special tokens are added as the tokenizer does; not where the text begins with its
        beginning of sequence already, as rendered chats do.
        """
        if not string:
            return []
        if not isinstance(string, str):
            return [self.tok_encode(text, add_special_tokens, **options) for text in string]
        begin = (
            None if self.prefix_token_id is None else self.tokenizer.decode(self.prefix_token_id)
        )
        if has_bos_prefix(string, begin):
            add_special_tokens = False
        if add_special_tokens is not None:
            options["add_special_tokens"] = add_special_tokens
        return self.tokenizer(string, return_attention_mask=False, **options).input_ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a dialogue in the checkpoint's chat template, on a fixed day."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                strftime_now=TODAY.strftime,
            )
        )

    # -- likelihoods -------------------------------------------------------------------------

    def _encode_pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        """Return the token ids of both, as lm-eval parts them."""
        pair = super()._encode_pair(context, continuation)
        return _compact(pair[0]), _compact(pair[1])

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return of each continuation its log-likelihood, and whether greedy decoding gives it."""
        rows = [self._placed(*request) for request in requests]
        # Side by side what begins alike, so that its beginning is computed once.
        order = sorted(range(len(rows)), key=lambda i: rows[i][0][: rows[i][1]].tobytes())
        found: dict[int, tuple[float, bool]] = {}
        with self._bar(len(rows), "likelihoods") as shown:
            for start in range(0, len(order), self._together):
                part = order[start : start + self._together]
                readings = self._reader.token_readings(
                    [rows[i][0] for i in part], [rows[i][1] for i in part]
                )
                for i, reading in zip(part, readings, strict=True):
                    found[i] = sum(reading.logprobs), all(reading.likeliest)
                shown.update(len(part))
        return [found[i] for i in range(len(rows))]

    def _placed(
        self, texts: tuple[str, str] | None, context: Sequence[int], continuation: Sequence[int]
    ) -> tuple[Ids, int]:
        """Return context and continuation, cut on the left, and where the latter begins.

        One token less than the longest length: an engine generates one.
        """
        ids = _compact(context) + _compact(continuation)
        over = max(0, len(ids) - (self.max_length - 1))
        if over:
            self._cut.add(texts[0] if texts else ids.tobytes())
        return ids[over:], max(1, len(context) - over)

    @property
    def _reader(self) -> RankedEngine:
        if not isinstance(self.engine, RankedEngine):
            raise InputError(
                f"'{self.checkpoint.spec.name}': its engine cannot tell the log-probabilities of "
                "given texts, which lm-eval's tasks of choices need; give the checkpoint's weights."
            )
        return self.engine

    @property
    def _together(self) -> int:
        return int(getattr(getattr(self.engine, "settings", None), "chunk", TOGETHER))

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of whole texts, read in windows that do not overlap."""
        windows: list[Pair] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 2,
                context_len=1,
            ):
                context, continuation = make_disjoint_window(window)
                windows.append((None, context, continuation))
                owners.append(place)
        totals = [0.0] * len(requests)
        for place, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[place] += logprob
        return totals

    # -- generation --------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return an answer to each prompt, up to the first of the task's texts to stop at.

        Raises:
            InputError: a task wants generation that the engines do not offer.
            EngineError: a prompt got no answer.
        """
        asked = [self._request(place, *request.args) for place, request in enumerate(requests)]
        longest_first = sorted(asked, key=lambda r: -len(r.prompt))
        texts: dict[str, str] = {}
        with self._bar(len(asked), "answers") as shown:
            for start in range(0, len(asked), self._together):
                for reply in self.engine.generate(longest_first[start : start + self._together]):
                    texts[reply.key] = _text_of(reply)
                    shown.update(1)
        return [
            postprocess_generated_text(texts[request.key], list(request.sampling.stop), None)
            for request in asked
        ]

    def _request(self, place: int, context: str, arguments: Mapping[str, Any]) -> Request:
        wanted = normalize_gen_kwargs(dict(arguments), default_max_gen_toks=MAX_GENERATED)
        if unknown := sorted(set(wanted) - KNOWN_ARGUMENTS):
            raise InputError(
                f"a task of suite '{self.suite}' generates with {', '.join(unknown)}, which is "
                f"not offered here; known: {', '.join(sorted(KNOWN_ARGUMENTS))}."
            )
        stop = handle_stop_sequences(wanted["until"], eos=self._end_text)
        whole = self.tok_encode(context)
        prompt, limit = maybe_truncate(
            whole,
            max_gen_toks=wanted["max_gen_toks"],
            max_model_len=self.max_length,
            verbose=False,
        )
        if len(prompt) < len(whole):
            self._cut.add(context)
        sampling = Sampling(
            temperature=wanted.get("temperature", 0.0),
            top_p=wanted.get("top_p", 1.0),
            max_tokens=limit,
            stop=tuple(text for text in stop if text),
        )
        key = f"{self.suite}\n{place}\n0"
        return Request(key=key, prompt=tuple(prompt), sampling=sampling, seed=self.seed + place)

    @property
    def _end_text(self) -> str:
        return str(self.tokenizer.decode(self.eot_token_id) or self.tokenizer.eos_token)

    @contextmanager
    def _bar(self, total: int, what: str) -> Iterator[Any]:
        """Show progress on the run's own stderr, while lm-eval's own bars are silenced."""
        text = f"{self.suite} {self.checkpoint.spec.name}: {what}"
        with redirect_stderr(self._shown_on), bar(total, text, "text") as shown:
            yield shown


def _compact(ids: Sequence[int]) -> Ids:
    return ids if isinstance(ids, array) else array("i", ids)


def _text_of(reply: Completion | Failure) -> str:
    if isinstance(reply, Failure):
        raise EngineError(f"{'/'.join(reply.key.splitlines())} got no answer: {reply.reason}")
    return reply.text
