"""Policies on disk: what a checkpoint holds, which one is whole, and how one is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.adapters.hf_folder import HEAD_PREFIX
from harness.errors import TrainingError
from harness.files import read_json, write_atomic
from harness.training.model import PreferenceModel

CHECKPOINTS = "checkpoints"
COMPLETE = "complete.json"
"""Written last into a checkpoint: one without it was cut short and is not used."""
HEAD_FILE = "baseline_head.safetensors"
POLICY_PREFIX = "policy."
ADAPTER_CONFIG = "adapter_config.json"
CONFIG = "config.json"


def last_checkpoint(output: Path) -> Path | None:
    """Return the newest whole checkpoint of an output folder."""
    whole = (output / CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE}")
    return max((p.parent for p in whole), key=step_of, default=None)


def drop_partial(output: Path) -> None:
    """Remove checkpoints that a kill cut short."""
    for folder in (output / CHECKPOINTS).glob("checkpoint-*"):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def mark_whole(checkpoint: Path) -> None:
    """Mark a checkpoint as whole, once everything is in it."""
    write_atomic(checkpoint / COMPLETE, json.dumps({"step": step_of(checkpoint)}) + "\n")


def write_policy(
    model: PreferenceModel, state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype
) -> None:
    """Write the policy in ``state`` as a PEFT or Hugging Face folder, the head beside it.

    Raises:
        TrainingError: a weight is not finite.
    """
    check_finite((n, p) for n, p in model.named_parameters() if p.requires_grad)
    policy = {
        name.removeprefix(POLICY_PREFIX): value.to(dtype)
        for name, value in state.items()
        if name.startswith(POLICY_PREFIX)
    }
    model.policy.save_pretrained(folder, state_dict=policy)
    if (folder / CONFIG).exists():
        # transformers names the type that the model is trained in.
        config = read_json(folder / CONFIG) | {"dtype": str(dtype).removeprefix("torch.")}
        write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    # PEFT's model card is a form of blanks that quotes the base's local path.
    (folder / "README.md").unlink(missing_ok=True)
    if model.head is not None:
        head = {f"{HEAD_PREFIX}{n}": v.contiguous() for n, v in model.head.state_dict().items()}
        save_file(head, folder / HEAD_FILE)


def complete_folder(folder: Path, base: str, tokenizer: Any) -> None:
    """Name a LoRA's base in its configuration; give a whole model its tokenizer."""
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        tokenizer.save_pretrained(folder)
        return
    config = read_json(path) | {"base_model_name_or_path": base}
    write_atomic(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def check_finite(named: Iterable[tuple[str, Tensor]]) -> None:
    """Check weights before they are saved.

    Raises:
        TrainingError: one is NaN or infinite.
    """
    for name, weight in named:
        if not torch.isfinite(weight).all():
            raise TrainingError(f"weight {name} is not finite; nothing was saved")


def saved_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a folder's safetensors files (adapter, shards, head), by name."""
    for path in sorted(folder.glob("*.safetensors")):
        yield from load_file(path).items()


def load_policy(model: PreferenceModel, folder: Path) -> None:
    """Load a saved policy, and its head if it has one, into ``model`` in place.

    Raises:
        TrainingError: the folder's tensors are not those that ``model`` trains.
    """
    tensors = dict(saved_tensors(folder))
    head = {n: tensors.pop(n) for n in list(tensors) if n.startswith(HEAD_PREFIX)}
    if model.head is not None:
        model.head.load_state_dict({n.removeprefix(HEAD_PREFIX): v for n, v in head.items()})
    if hasattr(model.policy, "peft_config"):
        from peft import set_peft_model_state_dict

        loaded: Any = set_peft_model_state_dict(model.policy, tensors)
        unexpected = loaded.unexpected_keys
        missing: list[str] = []
    else:
        result = model.policy.load_state_dict(tensors, strict=False)
        tied = set(model.policy.all_tied_weights_keys)
        unexpected, missing = result.unexpected_keys, sorted(set(result.missing_keys) - tied)
    if unexpected or missing:
        raise TrainingError(f"{folder} holds another model: unexpected {unexpected}, {missing=}")
