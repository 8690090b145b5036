"""A checkpoint as a transformers model on the best device there is, and its memory given back."""

from __future__ import annotations

import gc
from typing import Any

from harness.errors import EngineError
from harness.types import Dtype, Loadable

SHOWN = 3
"""Tensor names listed in an error."""


def best_device() -> str:
    """Return ``cuda``, ``mps`` or ``cpu``, the first that there is."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_model(checkpoint: Loadable, dtype: Dtype) -> Any:
    """Return a checkpoint's model in ``dtype``, its unmerged LoRA injected, ready to be read.

    Raises:
        EngineError: transformers or PEFT cannot load it, or left weights at random.
    """
    try:
        model = _base_model(checkpoint, dtype)
        if checkpoint.lora is not None:
            model = _with_lora(model, checkpoint.lora)
        return model.to(best_device()).eval()
    except EngineError:
        raise
    except Exception as error:  # safetensors, accelerate and PEFT raise classes of their own
        raise EngineError(
            f"transformers cannot load '{checkpoint.spec.name}' ({checkpoint.folder}) in "
            f"{dtype.value}: {type(error).__name__}: {error}"
        ) from error


def _base_model(checkpoint: Loadable, dtype: Dtype) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=getattr(torch, dtype.value), output_loading_info=True
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise EngineError(
            f"{checkpoint.folder} lacks {len(missing)} weights of '{checkpoint.spec.name}' "
            f"({', '.join(missing[:SHOWN])}), which would be random. Copy the checkpoint again."
        )
    return model


def _with_lora(model: Any, folder: str) -> Any:
    """Return ``model`` with an adapter's layers in place of its own."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).get_base_model()


def release_memory() -> None:
    """Give what dropped models held on a device back to it: other processes want it too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
