"""vLLM in process: one engine start, any number of checkpoints of one architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.engines import (
    FORCED_KEY,
    PROBE_KEY,
    TOP_P_KEY,
    Completion,
    Request,
    TokenReading,
    TokenStatistics,
)
from harness.engines.ranks import no_ranks, read_tokens
from harness.engines.settings import GIB, EngineSettings
from harness.errors import EngineDiedError, EngineError, InputError
from harness.processor import is_cpu_build
from harness.types import FinishReason, Loadable

WHOLE_PREFILL = 2048
"""Prompt tokens prefilled in one step on a CPU, where chunked prefill is off."""

FAILURES = (RuntimeError, ValueError, OSError, KeyError, MemoryError, AssertionError, TypeError)
"""What vLLM and torch raise while starting, loading and working."""


def engine_arguments(checkpoint: Loadable, settings: EngineSettings, seed: int) -> dict[str, Any]:
    """Return the keyword arguments of ``vllm.LLM`` for a checkpoint under ``settings``."""
    arguments: dict[str, Any] = {
        "model": checkpoint.folder,
        "dtype": checkpoint.spec.dtype.value,
        "seed": seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "quantization": settings.quantization,
        "enforce_eager": settings.enforce_eager,
        "enable_prefix_caching": not settings.deterministic,
        "logits_processors": _processors(settings),
        # With a step in flight the probe would see one distribution more than tokens are kept.
        "async_scheduling": False,
        "worker_extension_cls": "harness.engines.probe.WorkerExtension",
        "disable_log_stats": True,
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
    }
    return arguments | _lora_arguments(checkpoint, settings) | _hardware_arguments(settings)


def _processors(settings: EngineSettings) -> list[str]:
    wanted = {
        "harness.engines.probe:TokenProbe": settings.entropy or settings.max_loras,
        "harness.engines.nucleus:NucleusFilter": settings.own_top_p,
    }
    return [name for name, on in wanted.items() if on]


def _lora_arguments(checkpoint: Loadable, settings: EngineSettings) -> dict[str, Any]:
    if checkpoint.lora is None:
        return {}
    # One slot stays free: with all of them filled, vLLM's CPU build gives an adapter's weights to
    # requests that name none.
    return {
        "enable_lora": True,
        "max_loras": settings.max_loras + 1,
        "max_lora_rank": settings.max_lora_rank,
    }


def _hardware_arguments(settings: EngineSettings) -> dict[str, Any]:
    if not is_cpu_build():
        return {"gpu_memory_utilization": settings.gpu_memory_utilization}
    arguments: dict[str, Any] = {
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * GIB),
        # vLLM rewinds a seeded request's generator after a partial prefill by an offset that a
        # CPU generator does not have, so prompts must be prefilled whole.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(settings.max_model_len, WHOLE_PREFILL),
    }
    return arguments | ({"max_num_seqs": 1} if settings.deterministic else {})


class VllmEngine:
    """A vLLM engine in this process whose weights can be exchanged.

    The weights of a second checkpoint are read into the running engine (vLLM's own
    ``reload_weights``, completed by ``WorkerExtension.exchange_weights``); the prefix cache, which
    holds the old checkpoint's keys and values, is emptied. Callers prove each exchange with
    ``prompt_logprobs`` on a canary.

    An unmerged LoRA stays beside its base's weights. Requests of one call all belong to the
    checkpoint that is held, so that base and adapter never share a batch.
    """

    def __init__(self, settings: EngineSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self._llm: Any = None
        self._held: Loadable | None = None
        self._loras: dict[str, int] = {}

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, versions and settings."""
        return self.settings.identity("vllm")

    def load(self, checkpoint: Loadable) -> bool:
        """Hold ``checkpoint``: start the engine on it, or exchange the running engine's weights.

        Returns whether the engine was started.

        Raises:
            EngineError: the engine does not start or refuses the weights; the next load starts
                a new one.
            InputError: the checkpoint's architecture is not the engine's.
        """
        started = self._llm is None
        if started:
            self._start(checkpoint)
        else:
            self._exchange(checkpoint)
        self._held = checkpoint
        return started

    def _start(self, checkpoint: Loadable) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise EngineError(
                f"vLLM cannot be imported ({error}). Install tbpo-harness[cpu] or [gpu]."
            ) from error
        try:
            self._llm = LLM(**engine_arguments(checkpoint, self.settings, self.seed))
        except FAILURES as error:
            raise EngineError(f"vLLM did not start on '{checkpoint.spec.name}': {error}") from error

    def _exchange(self, checkpoint: Loadable) -> None:
        held = self._held
        assert held is not None
        _check_fits(checkpoint, held)
        if checkpoint.lora is None or checkpoint.folder != held.folder:
            self._reload(checkpoint)
        self.reset()

    def _reload(self, checkpoint: Loadable) -> None:
        try:
            self._llm.collective_rpc("exchange_weights", args=(checkpoint.folder,))
        except Exception as error:  # safetensors and vLLM's loaders raise classes of their own
            self.close()
            raise EngineError(
                f"the engine refused the weights of '{checkpoint.spec.name}' "
                f"({checkpoint.folder}): {type(error).__name__}: {error}"
            ) from error

    def reset(self) -> None:
        """Empty the prefix cache, so that what follows does not depend on what came before."""
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM could not empty its prefix cache; requests are still running")

    def prompt_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities, nats, of each sequence's tokens but the first."""
        assert self._held is not None
        if self._held.lora is not None:
            return self._forced_logprobs(sequences)
        from vllm import SamplingParams, TokensPrompt

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        prompts = [TokensPrompt(prompt_token_ids=list(s)) for s in sequences]
        with _engine_errors("reading log-probabilities"):
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        self.reset()
        return [_prompt_row(out) for out in outputs]

    def token_readings(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[TokenReading]:
        """Return the readings of each sequence's tokens from its place in ``starts`` on.

        Raises:
            InputError: an unmerged LoRA is held: vLLM gives no ranks beside one.
            EngineDiedError: vLLM failed.
        """
        assert self._held is not None
        if self._held.lora is not None:
            raise no_ranks(self._held)
        self.reset()
        with _engine_errors("reading given tokens"):
            found = read_tokens(self._llm, sequences, starts)
        self.reset()
        return found

    def _forced_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Read the same through decoding: vLLM's prompt log-probabilities fail beside a LoRA."""
        from vllm import SamplingParams

        waiting = {}
        for place, ids in enumerate(sequences):
            forced = [int(i) for i in ids[1:]]
            extra = {PROBE_KEY: f"forced {place}", FORCED_KEY: forced}
            waiting[f"forced {place}"] = (
                [int(ids[0])],
                SamplingParams(
                    temperature=0.0, max_tokens=len(forced), ignore_eos=True, extra_args=extra
                ),
            )
        found = {out.request_id: list(seen.logprobs) for out, seen in self._answers(waiting)}
        self.reset()
        return [found[key] for key in waiting]

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield completions as they finish; the batch schedule depends on ``requests`` alone.

        Raises:
            EngineDiedError: vLLM failed.
        """
        self.reset()
        waiting = {
            request.key: (
                list(request.prompt),
                sampling_params(request, own_top_p=self.settings.own_top_p),
            )
            for request in requests
        }
        for out, statistics in self._answers(waiting):
            yield _completion(out, statistics)

    def _answers(
        self, waiting: Mapping[str, tuple[list[int], Any]]
    ) -> Iterator[tuple[Any, TokenStatistics]]:
        """Yield vLLM's output and the statistics of every (prompt, parameters) as it finishes."""
        from vllm.inputs.engine import tokens_input

        engine = self._llm.llm_engine
        lora = self._lora_request()
        with _engine_errors("taking requests"):
            for key, (prompt, params) in waiting.items():
                engine.add_request(key, tokens_input(prompt), params, lora_request=lora)
        left = len(waiting)
        while left:
            with _engine_errors("generating"):
                done = [out for out in engine.step() if out.finished]
                found = self._statistics(done) if done else {}
            left -= len(done)
            for out in done:
                yield out, found.get(out.request_id, TokenStatistics())

    def _lora_request(self) -> Any:
        assert self._held is not None
        if self._held.lora is None:
            return None
        from vllm.lora.request import LoRARequest

        name = self._held.weights_sha256
        number = self._loras.setdefault(name, len(self._loras) + 1)
        return LoRARequest(name, number, str(Path(self._held.lora).resolve()))

    def _statistics(self, done: Sequence[Any]) -> dict[str, TokenStatistics]:
        answers = {out.request_id: list(out.outputs[0].token_ids) for out in done}
        found: dict[str, TokenStatistics] = {}
        for part in self._llm.collective_rpc("take_statistics", args=(answers,)):
            for key, (logprobs, entropies, top) in part.items():
                if len(logprobs) == len(entropies) == len(answers[key]):
                    found[key] = TokenStatistics(
                        logprobs=tuple(logprobs),
                        entropies=tuple(entropies),
                        entropies_top20=tuple(top),
                    )
        return found

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        if self._llm is not None:
            core = self._llm.llm_engine.engine_core
            core.shutdown()
        self._llm = None
        self._held = None
        self._loras = {}


def _check_fits(checkpoint: Loadable, held: Loadable) -> None:
    same = (
        checkpoint.architecture == held.architecture
        and checkpoint.spec.dtype == held.spec.dtype
        and (checkpoint.lora is None) == (held.lora is None)
        and (checkpoint.lora is None or checkpoint.folder == held.folder)
    )
    if not same:
        raise InputError(
            f"'{checkpoint.spec.name}' differs from '{held.spec.name}' in architecture, dtype or "
            "base; one engine holds checkpoints of one architecture."
        )


def _prompt_row(out: Any) -> list[float]:
    steps = zip(out.prompt_token_ids[1:], out.prompt_logprobs[1:], strict=True)
    return [float(step[token].logprob) for token, step in steps]


@contextmanager
def _engine_errors(doing: str) -> Iterator[None]:
    """Turn what vLLM and torch raise while working into an EngineDiedError."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # vLLM has exceptions of its own beside Python's
        raise EngineDiedError(
            f"vLLM failed while {doing}: {type(error).__name__}: {error}. What was computed is "
            "kept; run the same command to go on."
        ) from error


def sampling_params(request: Request, *, own_top_p: bool) -> Any:
    """Return vLLM's sampling parameters for a request; see ``EngineSettings.own_top_p``."""
    from vllm import SamplingParams

    sampling = request.sampling
    extra: dict[str, Any] = {PROBE_KEY: request.key}
    top_p = sampling.top_p
    if own_top_p and sampling.temperature > 0 and top_p < 1:
        extra[TOP_P_KEY], top_p = top_p, 1.0
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=top_p,
        max_tokens=sampling.max_tokens,
        seed=request.seed if sampling.temperature > 0 else None,
        stop=list(sampling.stop),
        # vLLM compares stop texts with an answer's text, in which skipped tokens are not.
        skip_special_tokens=not sampling.stop,
        spaces_between_special_tokens=not sampling.stop,
        extra_args=extra,
    )


def _completion(out: Any, statistics: TokenStatistics) -> Completion:
    answer = out.outputs[0]
    ended = answer.finish_reason
    if ended not in tuple(FinishReason):
        raise EngineDiedError(f"vLLM ended request '{out.request_id}' with '{ended}'")
    return Completion(
        key=out.request_id,
        text=answer.text,
        finish_reason=FinishReason(ended),
        tokens=len(answer.token_ids),
        prompt_tokens=len(out.prompt_token_ids),
        token_ids=tuple(answer.token_ids),
        statistics=statistics,
    )
