"""What transformers makes of a judge's question: the reference for engines and servers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.types import Message

LABELS = ("A", "B")


@cache
def _loaded(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder), model


def degree_by_transformers(folder: Path, messages: Sequence[Message]) -> float:
    """Return the probability of the first label as the reply's first token, over both labels."""
    import torch

    tokenizer, model = _loaded(folder)
    labels = [tokenizer.encode(label, add_special_tokens=False)[0] for label in LABELS]
    chat = [{"role": m.role.value, "content": m.content} for m in messages]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(ids["input_ids"]).logits[0, -1, labels]
    return float(torch.softmax(logits, dim=0)[0])
