"""What a PEFT LoRA folder holds: configuration, pairs of low-rank factors, a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.adapters.hf_folder import HEAD_PREFIX
from harness.adapters.identity import (
    ADAPTER_CONFIG,
    model_config,
    own_tokenizer,
    read_object,
    read_tokenizer,
)
from harness.adapters.tensors import load_tensors, tensor_names
from harness.adapters.torch_files import load_torch
from harness.errors import CheckpointError

PREFIX = "base_model.model."

PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is; others (PiSSA, OLoRA, LoftQ...) change it."""

VARIANTS = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""PEFT's options beside which a module's update is not, or not only, scale * B A."""

MERGE_WITH_PEFT = (
    "Merge the adapter with PEFT (merge_and_unload, save_pretrained) and give that folder."
)

Pairs = dict[str, tuple[Any, Any]]
"""Base tensor name -> (A, B) of shapes (r, in) and (out, r)."""


class LoraConfig(BaseModel):
    """The entries of a PEFT configuration that decide the adapted weights."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: str
    r: int = Field(gt=0)
    lora_alpha: float
    base_model_name_or_path: str | None = None
    revision: str | None = None
    use_rslora: bool = False
    bias: str = "none"
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    init_lora_weights: bool | str = True

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns_compile(cls, patterns: dict[str, float]) -> dict[str, float]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a pattern: {error}") from error
        return patterns

    def rank(self, module: str) -> int:
        """Return the rank of a module's pair: the first pattern that fits its name, else r."""
        return next(_fitting(self.rank_pattern, module), self.r)

    def scale(self, module: str) -> float:
        """Return the factor on B A: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
        alpha = next(_fitting(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def __str__(self) -> str:
        patterns = [name for name in ("rank_pattern", "alpha_pattern") if getattr(self, name)]
        with_patterns = f" with {' and '.join(patterns)}" if patterns else ""
        return f"LoRA r={self.r}, alpha={self.lora_alpha:g}{with_patterns}"


def _fitting(patterns: dict[str, Any], module: str) -> Iterator[Any]:
    """Return the values whose pattern is the end of a module's name, as PEFT matches them."""
    return (v for pattern, v in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))


def read_config(folder: Path) -> LoraConfig:
    """Return a LoRA folder's configuration.

    Raises:
        CheckpointError: not a LoRA, or a variant whose update is not a plain low-rank product.
    """
    file = folder / ADAPTER_CONFIG
    content = read_object(file)
    given = {key: value for key, value in content.items() if value is not None}
    try:
        config = LoraConfig.model_validate(given)
    except ValidationError as error:
        raise CheckpointError(f"{file} is not a PEFT LoRA configuration: {error}") from error
    wrong = [name for name in VARIANTS if given.get(name)]
    wrong += ["peft_type"] if config.peft_type.upper() != "LORA" else []
    wrong += ["bias"] if config.bias != "none" else []
    wrong += ["init_lora_weights"] if config.init_lora_weights not in PLAIN_STARTS else []
    if wrong:
        raise CheckpointError(f"{file}: {', '.join(wrong)} is not supported. {MERGE_WITH_PEFT}")
    return config


def read_tensors(file: Path) -> dict[str, Any]:
    """Return an adapter's tensors by name, from safetensors or from a file of ``torch.save``.

    Raises:
        CheckpointError: the file is damaged, or holds something else than tensors.
    """
    import torch

    if file.suffix == ".safetensors":
        return load_tensors(file)
    found = load_torch(file)
    tensors = isinstance(found, dict) and all(isinstance(v, torch.Tensor) for v in found.values())
    if not tensors:
        raise CheckpointError(f"{file} does not hold tensors by name; save the adapter again.")
    return dict(found)


def head_names(file: Path) -> list[str]:
    """Return the names of TBPO-Q's baseline-head tensors in an adapter's file."""
    names = tensor_names(file) if file.suffix == ".safetensors" else read_tensors(file)
    return sorted(name for name in names if is_head(name))


def is_head(name: str) -> bool:
    """Return whether an adapter's tensor belongs to TBPO-Q's baseline head."""
    return name.removeprefix(PREFIX).startswith(HEAD_PREFIX)


def low_rank_pairs(file: Path, config: LoraConfig) -> Pairs:
    """Return the pairs of an adapter's file, the baseline head left out.

    Raises:
        CheckpointError: a tensor is not part of a plain LoRA, half of a pair is missing, or a
            shape contradicts the configured rank.
    """
    halves: dict[str, dict[str, Any]] = {}
    for key, value in read_tensors(file).items():
        if is_head(key):
            continue
        name, found, tail = key.partition(".lora_")
        if not found or tail not in ("A.weight", "B.weight"):
            raise CheckpointError(
                f"{file}: tensor '{key}' is not part of a plain LoRA. {MERGE_WITH_PEFT}"
            )
        halves.setdefault(name.removeprefix(PREFIX) + ".weight", {})[tail[0]] = value
    lonely = [name for name, pair in halves.items() if len(pair) < 2]
    if lonely or not halves:
        raise CheckpointError(f"{file}: A or B is missing for {lonely or 'every module'}.")
    pairs = {name: (pair["A"], pair["B"]) for name, pair in halves.items()}
    _check_ranks(pairs, config, file)
    return pairs


def _check_ranks(pairs: Pairs, config: LoraConfig, file: Path) -> None:
    for name, (a, b) in pairs.items():
        rank = config.rank(name.removesuffix(".weight"))
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
            raise CheckpointError(
                f"{file}: A and B of {name} have shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                f"which do not fit r={rank} in {ADAPTER_CONFIG}."
            )


def added_tokens(folder: Path, base: Path) -> dict[str, int]:
    """Return the tokens that an adapter's own tokenizer has and the base's has not, with ids.

    Raises:
        CheckpointError: a token of the base has another id or none, or an id lies beyond the
            base's embedding.
    """
    if not own_tokenizer(folder):
        return {}
    theirs, ours = read_tokenizer(base).get_vocab(), read_tokenizer(folder).get_vocab()
    if moved := sorted((i, t) for t, i in theirs.items() if ours.get(t) != i):
        token_id, token = moved[0]
        raise CheckpointError(
            f"{folder} holds another tokenizer than its base {base}: {len(moved)} tokens differ, "
            f"the first '{token}', id {token_id} in the base's and "
            f"{ours.get(token, 'none')} in the adapter's. Give the base it was trained on."
        )
    added = {token: i for token, i in ours.items() if token not in theirs}
    _check_rows(added, folder, base)
    return added


def _check_rows(added: dict[str, int], folder: Path, base: Path) -> None:
    rows = int(model_config(base).get_text_config().vocab_size)
    if beyond := sorted((i, token) for token, i in added.items() if i >= rows):
        raise CheckpointError(
            f"{folder}: its tokenizer has {len(beyond)} tokens for which the base {base} has no "
            f"embedding row (it has {rows}), the first '{beyond[0][1]}' with id {beyond[0][0]}. "
            "Give the base with the enlarged embedding."
        )
