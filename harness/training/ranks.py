"""One process among many: what must happen once happens in the first, and all learn of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from harness.errors import InputError, TbpoError, TrainingError

T = TypeVar("T")

WHOLE = ("NO", "MULTI_CPU", "MULTI_GPU")
"""Ways of distributing, in accelerate's words, under which each process holds the whole model."""


def processes() -> PartialState:
    """Return the state of the processes that accelerate started; one process without it."""
    return PartialState(cpu=not torch.cuda.is_available())


def check_supported() -> None:
    """Check that the processes hold whole models.

    Raises:
        InputError: accelerate was told to shard them.
    """
    kind = processes().distributed_type.value
    if kind not in WHOLE:
        raise InputError(
            f"accelerate is configured for {kind}; policies are trained whole on each device here "
            "(data parallel). Choose a multi-GPU configuration without FSDP or DeepSpeed, LoRA, "
            "and gradient_checkpointing for large models."
        )


def on_first(work: Callable[[], T]) -> T:
    """Run ``work`` in the first process alone; every process returns its value.

    All processes must come here. An error of the first is raised in all of them, so that none
    waits for it.

    Raises:
        InputError, TrainingError: ``work`` raised it.
        RuntimeError: the first process failed in another way; its own error stands there.
    """
    state = processes()
    if state.num_processes == 1:
        return work()
    outcome: list[object] = ["", None]
    failure: Exception | None = None
    if state.is_main_process:
        try:
            outcome = ["", work()]
        except Exception as error:
            failure = error
            outcome = [_kind(error), str(error)]
    broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    kind, value = outcome
    if kind:
        raise {"input": InputError, "training": TrainingError}.get(str(kind), RuntimeError)(value)
    return value  # type: ignore[return-value]


def _kind(error: Exception) -> str:
    if isinstance(error, InputError):
        return "input"
    return "training" if isinstance(error, TbpoError) else "defect"
