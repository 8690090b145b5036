"""Sequences of like length together, so that little of a forward pass is padding."""

from __future__ import annotations

from collections.abc import Sequence


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return indices grouped by falling length, each group at most ``budget`` padded tokens.

    A single item longer than the budget gets a group of its own. Equal lengths keep their order.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
