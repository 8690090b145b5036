"""Short-hands for the records that metric and judge tests are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.types import Example, Generation, Instruction

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def example(example_id: str = "a", *, prompt: str = "Say something.", **fields: Any) -> Example:
    return Example.model_validate(
        {"id": example_id, "messages": [{"role": "user", "content": prompt}], **fields}
    )


def instructed(*instructions: tuple[str, dict[str, Any]], example_id: str = "a") -> Example:
    listed = tuple(Instruction(id=name, kwargs=kwargs) for name, kwargs in instructions)
    return example(example_id, instructions=listed)


def answer(text: str, example_id: str = "a", sample: int = 0, **changes: Any) -> Generation:
    fields: dict[str, Any] = {
        "checkpoint": "dpo",
        "weights_sha256": "0" * 64,
        "request_sha256": "1" * 64,
        "suite": "mini",
        "example_id": example_id,
        "sample": sample,
        "text": text,
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "tokens": 7,
        "entropy": 1.5,
    }
    return Generation(**{**fields, **changes})
