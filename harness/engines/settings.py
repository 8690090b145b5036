"""Settings of the engines: chosen from the hardware, overridable one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from harness.errors import InputError
from harness.processor import is_cpu_build
from harness.provenance import engine_versions
from harness.types import Record

GIB = 2**30
CPU_SEQUENCES = 64
"""Sequences decoded together on a CPU: beyond, the matrix products gain little."""

SMALLEST_CACHE_GIB = 0.5
CACHE_SHARE = 0.4
WEIGHTS_SHARE = 2 / 3


class EngineSettings(Record):
    """Settings of an engine that holds weights; all can change its results or its speed.

    Attributes:
        max_model_len: longest prompt plus answer, in tokens.
        max_num_seqs: most sequences decoded together.
        chunk: requests handed over at once; a stopped run repeats its unfinished chunk whole, so
            that every answer is computed in the batch it would have had undisturbed.
        kv_cache_gib: size of the key-value cache on a CPU.
        gpu_memory_utilization: share of a GPU's memory the engine may take.
        tensor_parallel_size, pipeline_parallel_size: over how many devices one model is spread.
        data_parallel_size: whole models side by side, each in a process of its own.
        quantization: passed to vLLM as it is (``fp8``, ``bitsandbytes``...).
        enforce_eager: no graph capture.
        own_top_p: truncate by this package's filter instead of vLLM's, which sorts the whole
            vocabulary and is slow on a CPU; the kept tokens are the same but for rounding.
        deterministic: answers do not depend on what else is in the batch, as far as the engine
            offers it; slower.
        entropy: record entropy and log-probability of every generated token.
        max_loras: adapters that can be held unmerged; 0 where all are merged.
        max_lora_rank: largest rank among them.
    """

    max_model_len: int = Field(default=1024, ge=1)
    max_num_seqs: int = Field(default=CPU_SEQUENCES, ge=1)
    chunk: int = Field(default=1024, ge=1)
    kv_cache_gib: float = Field(default=1.0, gt=0.0)
    gpu_memory_utilization: float = Field(default=0.85, gt=0.0, le=1.0)
    tensor_parallel_size: int = Field(default=1, ge=1)
    pipeline_parallel_size: int = Field(default=1, ge=1)
    data_parallel_size: int = Field(default=1, ge=1)
    quantization: str | None = None
    enforce_eager: bool = True
    own_top_p: bool = True
    deterministic: bool = False
    entropy: bool = True
    max_loras: int = Field(default=0, ge=0)
    max_lora_rank: int = Field(default=16, ge=1)

    def identity(self, engine: str) -> dict[str, Any]:
        """Return name, versions and settings: what of an engine decides its answers."""
        return {"name": engine, **engine_versions(engine), **self.model_dump(mode="json")}


class EndpointSettings(Record):
    """How an endpoint is asked.

    Attributes:
        concurrency: most requests under way together.
        attempts: most tries a request, the first included.
        timeout_s: seconds that one try may take.
        backoff_s: seconds before the second try, doubled for each one after it, plus chance.
        top_logprobs: ask for this many likeliest tokens at each position (0: do not ask).
    """

    concurrency: int = Field(default=16, ge=1)
    attempts: int = Field(default=8, ge=1)
    timeout_s: float = Field(default=120.0, gt=0.0)
    backoff_s: float = Field(default=0.5, ge=0.0)
    top_logprobs: int = Field(default=20, ge=0, le=20)


@dataclass(frozen=True)
class ModelFacts:
    """What of a model decides fitting settings.

    Attributes:
        context: longest context it was trained for, in tokens.
        weights_gib: size of its weight files.
        cache_bytes: key-value cache of one token, all layers, in the engine's dtype.
        heads: attention heads, which tensor parallelism divides.
    """

    context: int
    weights_gib: float
    cache_bytes: int
    heads: int


def cache_bytes(config: Any, itemsize: int) -> int:
    """Return the bytes of one token's keys and values over all layers; an upper bound."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return int(2 * text.num_hidden_layers * kept * width * itemsize)


def total_memory_gib() -> float:
    """Return the machine's memory, GiB."""
    import psutil

    return float(psutil.virtual_memory().total / GIB)


def cpu_cache_gib(model: ModelFacts, length: int, sequences: int, memory_gib: float) -> float:
    """Return a key-value cache that holds a full batch, at most 40 % of the memory."""
    wanted = model.cache_bytes * length * sequences / GIB
    fits = min(max(wanted, SMALLEST_CACHE_GIB), CACHE_SHARE * memory_gib)
    return max(SMALLEST_CACHE_GIB, round(4 * fits) / 4)


def gpu_layout(model: ModelFacts, gpus: int, memory_gib: float) -> tuple[int, int]:
    """Return (tensor parallel, data parallel) sizes that use all GPUs alike.

    A model is spread over as few GPUs as hold its weights in two thirds of their memory, so that
    a third is left for the key-value cache; what is left of the GPUs holds copies.
    """
    size = 1
    while size < gpus and (
        model.weights_gib > size * memory_gib * WEIGHTS_SHARE or model.heads % size
    ):
        size += 1
    return (size, max(1, gpus // size)) if model.heads % size == 0 else (1, 1)


def _gpus() -> tuple[int, float]:
    """Return how many GPUs there are, and the memory of the smallest, GiB."""
    import torch

    count = torch.cuda.device_count()
    sizes = [torch.cuda.get_device_properties(i).total_memory / GIB for i in range(count)]
    return count, min(sizes, default=0.0)


def default_settings(
    model: ModelFacts, wanted: int | None, *, spread: bool = True, needed: int = 0
) -> EngineSettings:
    """Return settings that fit the hardware: small batches on a CPU, large ones on a GPU.

    Args:
        model: what is to be held.
        wanted: the user's ``max_model_len``, if any.
        spread: the engine can use several GPUs.
        needed: longest prompt plus answer that is known of, in tokens.

    Raises:
        InputError: more is wanted than the model can take.
    """
    if wanted is not None and wanted > model.context:
        raise InputError(
            f"--max-model-len {wanted} is beyond the model's own limit of {model.context}"
        )
    gpus, memory = (0, 0.0) if is_cpu_build() else _gpus()
    if not gpus:
        length = wanted or min(model.context, max(1024, needed))
        cache = cpu_cache_gib(model, length, CPU_SEQUENCES, total_memory_gib())
        return EngineSettings(max_model_len=length, kv_cache_gib=cache)
    tensor, data = gpu_layout(model, gpus, memory) if spread else (1, 1)
    return EngineSettings(
        max_model_len=wanted or min(model.context, max(4096, needed)),
        max_num_seqs=256,
        chunk=4096,
        tensor_parallel_size=tensor,
        data_parallel_size=data,
        enforce_eager=False,
        own_top_p=False,
    )
