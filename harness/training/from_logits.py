"""Losses of preference pairs from plain logits, without a model: for checking and teaching.

The trainer never holds such logits; it computes the same statistics in chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.errors import InputError
from harness.training.objectives.base import Objective, Statistic, TokenStatistics
from harness.training.objectives.build import build_objective
from harness.training.objectives.distributions import exact_kl, token_logprobs

IGNORED = -100
"""Label of a position without a response token."""


def pair_losses(
    objective: str,
    policy_logits: Tensor,
    reference_logits: Tensor,
    labels: Tensor,
    *,
    baseline: Tensor | None = None,
    token_weights: Tensor | None = None,
    beta: float = 0.1,
    **options: Any,
) -> Tensor:
    """Return (B,) losses of B pairs, with gradient into the policy's logits and the baseline.

    Rows 0..B-1 are chosen responses, rows B..2B-1 the rejected ones of the same pairs. Position t
    of the logits predicts label t+1; a label in column 0 is predicted by none and is not read.
    Token-level objectives compare equal columns: they see those where both responses have a token,
    which are the first T tokens of both where the two share a prompt.

    Args:
        objective: name in the entry-point group ``tbpo.objectives``: sft, dpo, bpo, tdpo1, tdpo2,
            tis-dpo, tbpo-q, tbpo-a.
        policy_logits, reference_logits: (2B, T, V); narrower floats are widened to float32.
        labels: (2B, T) token ids, -100 where the response has no token.
        baseline: (2B, T) b_phi of the state at each position of the logits (tbpo-q).
        token_weights: (2B, T) weight of each label (tis-dpo).
        beta: given to the objectives that have it.
        options: other fields of the objective: generator, lam, s, centre, clamp, kl, alpha,
            label_smoothing, loss.

    Raises:
        InputError: shapes that do not fit, an odd number of rows, a label outside the vocabulary, a
            row without a token, a baseline or weights that are missing, or an unknown objective or
            option or one out of range.
    """
    made = build_objective(objective, options, shared={"beta": beta})
    _check_logits(policy_logits, reference_logits)
    _check_labels(labels, policy_logits)
    columns = {
        Statistic.BASELINE: _columns(baseline, "baseline", labels, slice(None, -1)),
        Statistic.TOKEN_WEIGHTS: _columns(token_weights, "token_weights", labels, slice(1, None)),
    }
    for statistic in made.requires & columns.keys():
        if columns[statistic] is None:
            raise InputError(
                f"{objective} needs {statistic.value}, a tensor of the labels' shape "
                f"{tuple(labels.shape)}; got None"
            )
    statistics = _statistics(made, policy_logits, reference_logits.detach(), labels, columns)
    return made.losses(_rows(statistics, 0), _rows(statistics, 1))


def _statistics(
    objective: Objective,
    policy_logits: Tensor,
    reference_logits: Tensor,
    labels: Tensor,
    columns: dict[Statistic, Tensor | None],
) -> dict[str, Tensor]:
    """Fields of the statistics of all rows, (2B, T-1)."""
    policy, reference = (_wide(logits)[:, :-1] for logits in (policy_logits, reference_logits))
    targets = labels[:, 1:]
    mask = targets != IGNORED
    tokens = targets.masked_fill(~mask, 0).long()
    values = {name.value: column for name, column in columns.items() if column is not None}
    values |= {
        "policy": token_logprobs(policy, tokens),
        "reference": token_logprobs(reference, tokens),
        "mask": mask,
    }
    if Statistic.KL in objective.requires:
        values["kl"] = exact_kl(reference, policy)
    if Statistic.REVERSE_KL in objective.requires:
        values["reverse_kl"] = exact_kl(policy, reference)
    return values


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _rows(statistics: dict[str, Tensor], half: int) -> TokenStatistics:
    return TokenStatistics(**{name: value.chunk(2)[half] for name, value in statistics.items()})


def _columns(value: Tensor | None, name: str, labels: Tensor, columns: slice) -> Tensor | None:
    if value is None:
        return None
    if value.shape != labels.shape:
        raise InputError(
            f"{name} has shape {tuple(value.shape)}; expected that of the labels, "
            f"{tuple(labels.shape)}"
        )
    return value[:, columns]


def _check_logits(policy: Tensor, reference: Tensor) -> None:
    if policy.ndim != 3 or not policy.is_floating_point():
        raise InputError(
            f"policy_logits has shape {tuple(policy.shape)} and dtype {policy.dtype}; expected "
            "floats of shape (2B, T, V)"
        )
    if reference.shape != policy.shape:
        raise InputError(
            f"reference_logits has shape {tuple(reference.shape)}, policy_logits "
            f"{tuple(policy.shape)}; expected the same"
        )
    rows, positions, _ = policy.shape
    if rows % 2 or rows == 0:
        raise InputError(
            f"the logits have {rows} rows; expected 2B: B chosen responses, then B rejected ones"
        )
    if positions < 2:
        raise InputError("the logits have one position or none; expected at least two")


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if labels.shape != logits.shape[:2] or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}; expected integers "
            f"of shape {tuple(logits.shape[:2])}"
        )
    vocabulary = logits.shape[-1]
    outside = (labels != IGNORED) & ((labels < 0) | (labels >= vocabulary))
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise InputError(
            f"label {labels[row, column].item()} at row {row}, position {column} is outside the "
            f"vocabulary of {vocabulary}; expected 0 to {vocabulary - 1}, or {IGNORED} for no token"
        )
    empty = (labels[:, 1:] == IGNORED).all(-1)
    if empty.any():
        raise InputError(
            f"row {empty.nonzero()[0].item()} has no response token after position 0, so its pair "
            "has no loss; leave the pair out"
        )
