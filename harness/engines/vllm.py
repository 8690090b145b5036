"""vLLM in process: one engine start, any number of checkpoints of one architecture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from harness.engines import ENTROPY_KEY, TOP_P_KEY, Completion, Request
from harness.engines.environment import is_cpu_build
from harness.errors import EngineError, InputError
from harness.types import FinishReason, Loadable, Record

GIB = 2**30
WHOLE_PREFILL = 2048
"""Prompt tokens prefilled in one step on a CPU, where chunked prefill is off."""


class EngineSettings(Record):
    """Settings of the engine that can change its results or its speed.

    Attributes:
        max_model_len: longest prompt plus answer, in tokens.
        max_num_seqs: most sequences decoded together.
        chunk: requests handed over at once; a stopped run repeats its unfinished chunk whole, so
            that every answer is computed in the batch it would have had undisturbed.
        kv_cache_gib: size of the key-value cache on a CPU.
        gpu_memory_utilization: share of a GPU's memory the engine may take.
        enforce_eager: no graph capture.
        own_top_p: truncate by this package's filter instead of vLLM's, which sorts the whole
            vocabulary and is slow on a CPU; the kept tokens are the same but for rounding.
    """

    max_model_len: int = Field(default=1024, ge=1)
    max_num_seqs: int = Field(default=64, ge=1)
    chunk: int = Field(default=1024, ge=1)
    kv_cache_gib: float = Field(default=1.0, gt=0.0)
    gpu_memory_utilization: float = Field(default=0.85, gt=0.0, le=1.0)
    tensor_parallel_size: int = Field(default=1, ge=1)
    enforce_eager: bool = True
    own_top_p: bool = True


def default_settings(limit: int, wanted: int | None) -> EngineSettings:
    """Return settings that fit the hardware: small batches on a CPU, large ones on a GPU.

    Args:
        limit: longest context the model was trained for, in tokens.
        wanted: the user's ``max_model_len``, if any.

    Raises:
        InputError: more is wanted than the model can take.
    """
    if wanted is not None and wanted > limit:
        raise InputError(f"--max-model-len {wanted} is beyond the model's own limit of {limit}")
    if is_cpu_build():
        return EngineSettings(max_model_len=wanted or min(limit, 1024))
    return EngineSettings(
        max_model_len=wanted or min(limit, 4096),
        max_num_seqs=256,
        chunk=4096,
        enforce_eager=False,
        own_top_p=False,
    )


def engine_arguments(checkpoint: Loadable, settings: EngineSettings, seed: int) -> dict[str, Any]:
    """Return the keyword arguments of ``vllm.LLM`` for a checkpoint under ``settings``."""
    arguments: dict[str, Any] = {
        "model": checkpoint.folder,
        "dtype": checkpoint.spec.dtype.value,
        "seed": seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enforce_eager": settings.enforce_eager,
        "enable_prefix_caching": True,
        "logits_processors": ["harness.engines.entropy:EntropyProbe"],
        # With a step in flight the probe would see one distribution more than tokens are kept.
        "async_scheduling": False,
        "worker_extension_cls": "harness.engines.entropy.EntropyWorker",
        "disable_log_stats": True,
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
    }
    if settings.own_top_p:
        arguments["logits_processors"].append("harness.engines.nucleus:NucleusFilter")
    if is_cpu_build():
        arguments["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * GIB)
        # vLLM rewinds a seeded request's generator after a partial prefill by an offset that a
        # CPU generator does not have, so prompts must be prefilled whole.
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(settings.max_model_len, WHOLE_PREFILL)
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    return arguments


class VllmEngine:
    """An in-process vLLM engine whose weights can be exchanged.

    The weights of a second checkpoint are read into the running engine with vLLM's own
    ``reload_weights``; the prefix cache, which holds the old checkpoint's keys and values, is
    emptied. Callers prove each exchange with ``prompt_logprobs`` on a canary.
    """

    def __init__(self, settings: EngineSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.starts = 0
        self._llm: Any = None
        self._held: Loadable | None = None

    def load(self, checkpoint: Loadable) -> None:
        """Hold ``checkpoint``: start the engine on it, or exchange the running engine's weights.

        Raises:
            EngineError: the engine does not start or refuses the weights.
            InputError: the checkpoint's architecture is not the engine's.
        """
        if self._llm is None:
            self._start(checkpoint)
        else:
            self._exchange(checkpoint)
        self._held = checkpoint

    def _start(self, checkpoint: Loadable) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise EngineError(
                f"vLLM cannot be imported ({error}). Install tbpo-harness[cpu] or [gpu]."
            ) from error
        try:
            self._llm = LLM(**engine_arguments(checkpoint, self.settings, self.seed))
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"vLLM did not start on '{checkpoint.spec.name}': {error}") from error
        self.starts += 1

    def _exchange(self, checkpoint: Loadable) -> None:
        held = self._held
        assert held is not None
        if checkpoint.architecture != held.architecture or checkpoint.spec.dtype != held.spec.dtype:
            raise InputError(
                f"'{checkpoint.spec.name}' differs from '{held.spec.name}' in architecture or "
                "dtype; one engine holds checkpoints of one architecture. Compare it in a run of "
                "its own."
            )
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": checkpoint.folder})
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            self.close()
            raise EngineError(
                f"the engine refused the weights of '{checkpoint.spec.name}': {error}"
            ) from error
        self.reset()

    def reset(self) -> None:
        """Empty the prefix cache, so that what follows does not depend on what came before."""
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM could not empty its prefix cache; requests are still running")

    def prompt_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities, nats, of each sequence's tokens but the first."""
        from vllm import SamplingParams, TokensPrompt

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        prompts = [TokensPrompt(prompt_token_ids=list(s)) for s in sequences]
        with _engine_errors("reading log-probabilities"):
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        self.reset()
        return [
            [
                step[token].logprob
                for token, step in zip(out.prompt_token_ids[1:], steps, strict=True)
            ]
            for out in outputs
            for steps in [out.prompt_logprobs[1:]]
        ]

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield completions as they finish; the batch schedule depends on ``requests`` alone."""
        from vllm.inputs.engine import tokens_input

        self.reset()
        engine = self._llm.llm_engine
        waiting = {}
        for request in requests:
            waiting[request.key] = request
            engine.add_request(
                request.key,
                tokens_input(list(request.prompt)),
                sampling_params(request, own_top_p=self.settings.own_top_p),
            )
        while waiting:
            with _engine_errors("generating"):
                done = [out for out in engine.step() if out.finished]
            if not done:
                continue
            entropies = self._entropies([out.request_id for out in done])
            for out in done:
                del waiting[out.request_id]
                yield _completion(out, entropies.get(out.request_id, []))

    def _entropies(self, keys: list[str]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for part in self._llm.collective_rpc("take_entropies", args=(keys,)):
            found |= {key: values for key, values in part.items() if values}
        return found

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        if self._llm is not None:
            core = self._llm.llm_engine.engine_core
            core.shutdown()
        self._llm = None
        self._held = None


@contextmanager
def _engine_errors(doing: str) -> Iterator[None]:
    """Turn what vLLM and torch raise while working into an EngineError."""
    try:
        yield
    except (RuntimeError, ValueError, OSError, KeyError, MemoryError) as error:
        raise EngineError(
            f"vLLM failed while {doing}: {type(error).__name__}: {error}. What was computed is "
            "kept; run the same command to go on."
        ) from error


def sampling_params(request: Request, *, own_top_p: bool) -> Any:
    """Return vLLM's sampling parameters for a request; see ``EngineSettings.own_top_p``."""
    from vllm import SamplingParams

    sampling = request.sampling
    extra: dict[str, Any] = {ENTROPY_KEY: request.key}
    top_p = sampling.top_p
    if own_top_p and sampling.temperature > 0 and top_p < 1:
        extra[TOP_P_KEY], top_p = top_p, 1.0
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=top_p,
        max_tokens=sampling.max_tokens,
        seed=request.seed if sampling.temperature > 0 else None,
        extra_args=extra,
    )


def _completion(out: Any, entropies: list[float]) -> Completion:
    answer = out.outputs[0]
    if answer.finish_reason not in tuple(FinishReason):
        raise EngineError(f"vLLM ended request '{out.request_id}' with '{answer.finish_reason}'")
    tokens = len(answer.token_ids)
    complete = len(entropies) == tokens and tokens > 0
    return Completion(
        key=out.request_id,
        text=answer.text,
        finish_reason=FinishReason(answer.finish_reason),
        tokens=tokens,
        entropy=max(0.0, sum(entropies) / tokens) if complete else None,
    )
