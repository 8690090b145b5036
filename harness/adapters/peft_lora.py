"""Adapter for a PEFT LoRA folder: merged once into its base, in float32 arithmetic."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.adapters.embedded import MODELS, embedded_folder
from harness.adapters.hf_folder import (
    HEAD_PREFIX,
    cache_key,
    check_folder,
    companions,
    describe,
    dropped_note,
    head_tensors,
    load_tensors,
)
from harness.adapters.identity import weight_files, weights_sha256
from harness.errors import CheckpointError
from harness.files import atomic_folder, cache_root, read_json, sha256_file
from harness.types import CheckpointSpec, Loadable

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

MERGE_VERSION = 1
"""Raised whenever the merge's arithmetic changes, so that no old merge is reused."""

PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is; others (PiSSA, OLoRA, LoftQ...) change it."""
TOKENIZER = (
    "added_tokens.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


class LoraConfig(BaseModel):
    """The entries of a PEFT configuration that decide the merged weights."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: str
    r: int
    lora_alpha: float
    base_model_name_or_path: str | None = None
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str = True
    layer_replication: list[Any] | None = None

    @property
    def scale(self) -> float:
        """Factor on B A: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


def read_config(folder: Path) -> LoraConfig:
    """Return a LoRA folder's configuration.

    Raises:
        CheckpointError: not a LoRA, or a variant whose merge is not a plain low-rank sum.
    """
    try:
        config = LoraConfig.model_validate(read_json(folder / CONFIG))
    except ValidationError as error:
        raise CheckpointError(
            f"{folder / CONFIG} is not a PEFT LoRA configuration: {error}"
        ) from error
    unsupported = {
        "peft_type": config.peft_type.upper() != "LORA",
        "use_dora": config.use_dora,
        "fan_in_fan_out": config.fan_in_fan_out,
        "bias": config.bias != "none",
        "rank_pattern": bool(config.rank_pattern),
        "alpha_pattern": bool(config.alpha_pattern),
        "modules_to_save": bool(config.modules_to_save),
        "layer_replication": bool(config.layer_replication),
        "init_lora_weights": config.init_lora_weights not in PLAIN_STARTS,
    }
    if wrong := [name for name, bad in unsupported.items() if bad]:
        raise CheckpointError(
            f"{folder / CONFIG}: {', '.join(wrong)} is not supported by the merge. Merge the "
            "adapter with PEFT (merge_and_unload, save_pretrained) and give that folder."
        )
    return config


def base_folder(spec: CheckpointSpec, config: LoraConfig) -> Path:
    """Return the folder of a LoRA's base: the user's word, else what its config names.

    Raises:
        CheckpointError: neither names a folder on this machine or an embedded model.
    """
    wanted = spec.base or config.base_model_name_or_path
    if wanted is None:
        raise CheckpointError(f"'{spec.name}': the adapter names no base model; give base=FOLDER.")
    for model in MODELS.values():
        if wanted in (model.hub_id, f"embedded:{model.name}"):
            return embedded_folder(model.name)
    folder = Path(wanted).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"'{spec.name}': base model '{wanted}' is not a folder on this machine. "
            f"Give it as base=FOLDER: --checkpoint {spec.name}={spec.source},base=FOLDER."
        )
    return folder


def _check_recorded_base(folder: Path, base: Path, name: str) -> None:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return
    recorded = read_json(manifest).get("base", {})
    expected = recorded.get("weights_sha256") if isinstance(recorded, dict) else None
    if expected is not None and expected != weights_sha256(base):
        raise CheckpointError(
            f"'{name}': the adapter was trained on base weights {expected[:12]}, but {base} holds "
            f"{weights_sha256(base)[:12]}. Give the base it was trained on as base=FOLDER."
        )


def _low_rank_pairs(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return base tensor name -> (A, B) of shapes (r, in) and (out, r)."""
    halves: dict[str, dict[str, Any]] = {}
    for key, value in load_tensors(folder / WEIGHTS).items():
        if key.removeprefix(PREFIX).startswith(HEAD_PREFIX):
            continue
        name, found, tail = key.partition(".lora_")
        if not found or tail not in ("A.weight", "B.weight"):
            raise CheckpointError(
                f"{folder / WEIGHTS}: tensor '{key}' is not part of a plain LoRA."
            )
        halves.setdefault(name.removeprefix(PREFIX) + ".weight", {})[tail[0]] = value
    lonely = [name for name, pair in halves.items() if len(pair) < 2]
    if lonely or not halves:
        raise CheckpointError(
            f"{folder / WEIGHTS}: A or B is missing for {lonely or 'every module'}."
        )
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}


def _check_ranks(pairs: dict[str, tuple[Any, Any]], rank: int, folder: Path) -> None:
    for name, (a, b) in pairs.items():
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
            raise CheckpointError(
                f"{folder / WEIGHTS}: A and B of {name} have shapes {tuple(a.shape)} and "
                f"{tuple(b.shape)}, which do not fit r={rank} in {CONFIG}."
            )


def _own_tokenizer(folder: Path) -> dict[str, Path]:
    """Return the tokenizer files of an adapter folder, if it was saved with a whole tokenizer."""
    found = {name: folder / name for name in TOKENIZER if (folder / name).is_file()}
    return found if {"tokenizer.json", "tokenizer_config.json"} <= found.keys() else {}


def _merge_file(
    file: Path, target: Path, pairs: dict[str, tuple[Any, Any]], scale: float
) -> set[str]:
    """Write one merged safetensors file; return the names of the tensors that were changed."""
    import torch
    from safetensors.torch import save_file

    tensors = load_tensors(file)
    changed = set(tensors) & set(pairs)
    for name in sorted(changed):
        weight, (a, b) = tensors[name], pairs[name]
        if (b.shape[0], a.shape[1]) != tuple(weight.shape):
            raise CheckpointError(
                f"LoRA for {name} has shape {b.shape[0]}x{a.shape[1]}, the base's weight "
                f"{'x'.join(map(str, weight.shape))}: the adapter belongs to another base."
            )
        merged = (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
        if not torch.isfinite(merged).all():
            raise CheckpointError(f"merging {name} gives NaN or infinite weights.")
        tensors[name] = merged
    save_file(tensors, target, metadata={"format": "pt"})
    return changed


def merge(folder: Path, base: Path, config: LoraConfig) -> Path:
    """Return the cached folder of ``base`` with the LoRA in ``folder`` merged in.

    W + (alpha/r) B A (Hu et al., 2021, arXiv 2106.09685, section 4.1), computed in float32 and
    rounded to the base's dtype. The cache key covers everything that goes into the folder. An
    adapter saved with a tokenizer keeps it, and with it its chat template.

    Raises:
        CheckpointError: shapes do not fit, a module is not in the base, or weights are not finite.
    """
    files = companions(base) | _own_tokenizer(folder)
    facts = [
        MERGE_VERSION,
        sha256_file(folder / WEIGHTS),
        config.model_dump(mode="json"),
        weights_sha256(base),
    ]
    target = cache_root() / "merged" / cache_key(files, *facts)
    if target.is_dir():
        return target
    pairs = _low_rank_pairs(folder)
    _check_ranks(pairs, config.r, folder)
    with atomic_folder(target) as scratch:
        changed: set[str] = set()
        for file in weight_files(base):
            changed |= _merge_file(file, scratch / file.name, pairs, config.scale)
        if missing := sorted(set(pairs) - changed):
            raise CheckpointError(
                f"{folder}: the base {base} has no {missing[0]} ({len(missing)} such modules): "
                "the adapter belongs to another base."
            )
        for name, file in files.items():
            shutil.copy2(file, scratch / name)
    return target


class PeftLora:
    """A folder written by PEFT's ``save_pretrained`` for a LoRA."""

    def prepare(self, spec: CheckpointSpec) -> Loadable:
        """Return the adapter merged into its base, ready for an engine.

        Raises:
            CheckpointError: the base is missing or another one, or the merge is not possible.
        """
        folder = Path(spec.source).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"adapter folder {folder} does not exist.")
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(f"{folder} has no {WEIGHTS}; save the adapter as safetensors.")
        config = read_config(folder)
        base = base_folder(spec, config)
        check_folder(base)
        _check_recorded_base(folder, base, spec.name)
        merged = merge(folder, base, config)
        note = f"LoRA r={config.r}, alpha={config.lora_alpha:g} merged into {base.name} in float32"
        dropped = head_tensors([folder / WEIGHTS], PREFIX)
        return describe(spec, merged, (note, *dropped_note(dropped)))
