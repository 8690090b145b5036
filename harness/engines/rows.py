"""Which request sits in which row of vLLM's batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

T = TypeVar("T")


def follow(
    rows: dict[int, T],
    update: BatchUpdate | None,
    entry: Callable[[SamplingParams, list[int]], T | None],
) -> None:
    """Bring ``rows`` up to date as vLLM removes, adds and moves requests, in that order.

    Args:
        entry: what a row holds, from a request's parameters and its growing list of output
            tokens; None for requests that are of no interest.
    """
    if update is None:
        return
    for index in update.removed:
        rows.pop(index, None)
    for index, params, _, output in update.added:
        rows.pop(index, None)
        if (held := entry(params, output)) is not None:
            rows[index] = held
    for source, target, direction in update.moved:
        moved, replaced = rows.pop(source, None), rows.pop(target, None)
        if moved is not None:
            rows[target] = moved
        if replaced is not None and direction == MoveDirectionality.SWAP:
            rows[source] = replaced
