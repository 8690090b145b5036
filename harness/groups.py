"""Which checkpoints share an engine, and with which settings it is started."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from harness import plugins
from harness.adapters.identity import model_config, weight_files
from harness.adapters.lora_folder import read_config
from harness.engines import Engine
from harness.engines.settings import (
    GIB,
    EndpointSettings,
    EngineSettings,
    ModelFacts,
    cache_bytes,
    default_settings,
)
from harness.errors import CheckpointError, InputError
from harness.files import sha256_json
from harness.processor import is_cpu_build
from harness.suites import validation_text
from harness.types import Dtype, EngineCard, Form, Loadable, Record

S = TypeVar("S", bound=Record)

BYTES = {Dtype.FLOAT32: 4, Dtype.FLOAT16: 2, Dtype.BFLOAT16: 2}

VLLM, TRANSFORMERS = "vllm", "transformers"

NAME = "name"
"""Key among a run's engine settings that names the engine."""

LENGTH = "max_model_len"
"""Key among them that is also an option of its own."""


@dataclass(frozen=True)
class EngineGroup:
    """Checkpoints that one engine start serves, in turn.

    Attributes:
        engine: name under ``tbpo.engines``.
        settings: None for engines that have none.
    """

    engine: str
    form: Form
    settings: EngineSettings | EndpointSettings | None
    checkpoints: tuple[Loadable, ...]

    def make(self, seed: int) -> Engine:
        """Return the engine, not started yet."""
        kind: Any = plugins.load("engines", self.engine)
        given: tuple[Any, ...] = () if self.settings is None else (self.settings,)
        if isinstance(self.settings, EngineSettings):
            given = (*given, seed)
        engine: Engine = kind(*given)
        return engine

    def card(self, seed: int) -> EngineCard:
        """Return how the manifest describes the group."""
        identity = dict(self.make(seed).identity)
        names = tuple(c.spec.name for c in self.checkpoints)
        return EngineCard(
            checkpoints=names,
            identity=identity,
            guarantees=tuple(guarantees(self.settings, self.engine)),
        )

    def sha256(self, seed: int) -> str:
        """Return the hash of what of the engine decides its answers."""
        return sha256_json(dict(self.make(seed).identity))


def speed_of(group: EngineGroup, checkpoint: Loadable) -> dict[str, Any]:
    """Return what the speed of generation depends on, the requests aside."""
    about: dict[str, Any] = {"engine": group.engine}
    if isinstance(group.settings, EngineSettings):
        about |= {
            "architecture": checkpoint.architecture,
            "dtype": checkpoint.arithmetic,
            "sequences": group.settings.max_num_seqs,
        }
    else:
        about |= {"folder": checkpoint.folder, "model": checkpoint.spec.model}
    return about


EXPECTED = ("is expected to give", "is expected not to depend")
NOT_MEASURED = " (not measured: only vLLM's CPU build was)"
"""How what holds on a CPU is said of other hardware, on which nobody has looked."""


def guarantees(settings: Record | None, engine: str = VLLM) -> Iterator[str]:
    """Yield what is known of when answers of an engine repeat, and when they need not."""
    if settings is None:
        yield "answers on file: the same at every run"
    elif isinstance(settings, EndpointSettings):
        yield "a server's answers need not repeat; whether it kept to the seed cannot be seen"
    elif isinstance(settings, EngineSettings):
        measured = engine == VLLM and is_cpu_build()
        gives, depends = ("gives", "does not depend") if measured else EXPECTED
        unmeasured = "" if measured else NOT_MEASURED
        yield (
            f"the same manifest on the same kind of machine {gives} the same text, token for "
            f"token{unmeasured}"
        )
        if settings.deterministic:
            yield (
                f"deterministic: an answer {depends} on the batch it was computed in{unmeasured}"
            )
        else:
            yield (
                "not guaranteed across batch sizes or orders of requests: the batch changes how "
                "sums are rounded, above all in bfloat16"
            )
        yield "not guaranteed across processors, GPUs, or versions of the engine and torch"


def default_engine() -> str:
    """Return vLLM where it is installed, else transformers (macOS, Windows)."""
    return VLLM if importlib.util.find_spec("vllm") else TRANSFORMERS


def make_groups(
    checkpoints: Sequence[Loadable],
    engine: Mapping[str, Any],
    endpoint: Mapping[str, Any],
    max_model_len: int | None,
    needed: Callable[[Loadable], int] = lambda _: 0,
) -> tuple[EngineGroup, ...]:
    """Return the engine groups of a run, in the order of their first checkpoints.

    Args:
        engine: settings of the engine that holds weights, by name; ``name`` chooses it.
        endpoint: settings for endpoints, by name.
        needed: longest prompt plus answer of a checkpoint with weights, in tokens; asked of the
            first of a group where nobody wants a context.

    Raises:
        InputError: unknown engine or setting, a wrong value, or a context beyond the model's.
    """
    _check_words(engine, endpoint)
    length = _wanted_length(engine, max_model_len)
    found: dict[str, list[Loadable]] = {}
    for checkpoint in checkpoints:
        found.setdefault(_shared(checkpoint), []).append(checkpoint)
    return tuple(_group(part, dict(engine), endpoint, length, needed) for part in found.values())


def _check_words(engine: Mapping[str, Any], endpoint: Mapping[str, Any]) -> None:
    """Refuse unknown names and wrong values, also where no checkpoint has a use for them."""
    if engine.get(NAME):
        plugins.load("engines", str(engine[NAME]))
    checked_settings(EngineSettings(), {k: v for k, v in engine.items() if k != NAME}, "engine")
    checked_settings(EndpointSettings(), endpoint, "endpoint")


def _wanted_length(engine: Mapping[str, Any], max_model_len: int | None) -> int | None:
    """Return the context that the user wants, in tokens: an option, and a setting of the engine.

    Raises:
        InputError: it is given as both, and they differ.
    """
    if LENGTH not in engine:
        return max_model_len
    wanted = checked_settings(EngineSettings(), {LENGTH: engine[LENGTH]}, "engine").max_model_len
    if max_model_len not in (None, wanted):
        raise InputError(
            f"--max-model-len {max_model_len} and the engine's setting {LENGTH}={wanted} differ. "
            "Give one of them."
        )
    return wanted


def _shared(checkpoint: Loadable) -> str:
    """Return what must be equal for two checkpoints to share an engine start."""
    if checkpoint.form != Form.WEIGHTS:
        return checkpoint.form.value
    base = checkpoint.folder if checkpoint.lora else None
    return json.dumps([checkpoint.architecture, checkpoint.spec.dtype, base])


def _group(
    checkpoints: Sequence[Loadable],
    engine: dict[str, Any],
    endpoint: Mapping[str, Any],
    max_model_len: int | None,
    needed: Callable[[Loadable], int],
) -> EngineGroup:
    form = checkpoints[0].form
    given = tuple(checkpoints)
    if form == Form.RECORDED:
        return EngineGroup("replay", form, None, given)
    if form == Form.ENDPOINT:
        settings = checked_settings(EndpointSettings(), endpoint, "endpoint")
        return EngineGroup("openai", form, settings, given)
    name = engine.pop(NAME, None) or default_engine()
    if not hasattr(plugins.load("engines", name), "prompt_logprobs"):
        raise InputError(
            f"engine '{name}' holds no weights, which '{given[0].spec.name}' has. Name one that "
            f"does ({VLLM}, {TRANSFORMERS}); endpoints and files of answers find theirs by "
            "themselves."
        )
    vllm = name == VLLM
    room = needed(given[0]) if max_model_len is None else 0
    wanted = default_settings(model_facts(given[0]), max_model_len, spread=vllm, needed=room)
    loras = [c for c in checkpoints if c.lora]
    if loras and vllm:
        rank = max(_rank(c) for c in loras)
        wanted = wanted.model_copy(update={"max_loras": len(loras), "max_lora_rank": rank})
    used = _as_used(name, checked_settings(wanted, engine, "engine"))
    return EngineGroup(name, form, used, given)


def _as_used(engine: str, settings: EngineSettings) -> EngineSettings:
    """Return settings that say so where the engine computes every answer alone."""
    alone = engine == TRANSFORMERS or (engine == VLLM and is_cpu_build())
    changes = {"max_num_seqs": 1} if settings.deterministic and alone else {}
    return settings.model_copy(update=changes)


def checked_settings(wanted: S, given: Mapping[str, Any], what: str) -> S:
    """Return settings with those that were given in place of the chosen ones.

    Raises:
        InputError: an unknown setting, or a wrong value.
    """
    known = type(wanted).model_fields
    if unknown := sorted(set(given) - set(known)):
        raise InputError(
            f"unknown {what} setting '{unknown[0]}'. Known: {', '.join(sorted(known))}."
        )
    try:
        return type(wanted).model_validate(wanted.model_dump() | dict(given))
    except ValidationError as error:
        raise InputError(f"{what}: {validation_text(error)}") from error


LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM has room for."""


def _rank(checkpoint: Loadable) -> int:
    assert checkpoint.lora is not None
    config = read_config(Path(checkpoint.lora))
    wanted = max([config.r, *config.rank_pattern.values()])
    fits = [rank for rank in LORA_RANKS if rank >= wanted]
    if not fits:
        raise InputError(
            f"'{checkpoint.spec.name}': vLLM holds no LoRA of rank {wanted}; leave out merge=false"
        )
    return fits[0]


def model_facts(checkpoint: Loadable) -> ModelFacts:
    """Return what of a checkpoint decides fitting settings.

    Raises:
        CheckpointError: its config names no context length.
    """
    folder = Path(checkpoint.folder)
    config = model_config(folder).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(context, int):
        raise CheckpointError(f"{folder}: its config names no max_position_embeddings")
    return ModelFacts(
        context=context,
        weights_gib=sum(f.stat().st_size for f in weight_files(folder)) / GIB,
        cache_bytes=cache_bytes(config, BYTES[checkpoint.spec.dtype]),
        heads=int(getattr(config, "num_attention_heads", 1)),
    )
