"""Checks of an objective's options, made once, when it is built."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeGuard

from harness.errors import InputError, unknown_name


def check_number(
    owner: str,
    option: str,
    value: object,
    *,
    above: float = -math.inf,
    low: float = -math.inf,
    high: float = math.inf,
) -> None:
    """Refuse a value that is no finite number greater than ``above`` in [``low``, ``high``].

    Raises:
        InputError: it names owner, option, what is allowed and the value.
    """
    if _is_finite(value) and value > above and low <= value <= high:
        return
    bounds = [(">", above), (">=", low), ("<=", high)]
    allowed = [f" {sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound)]
    raise InputError(
        f"{owner} needs {option}{' and'.join(allowed)}, a finite number; got {value!r}"
    )


def _is_finite(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def check_choice(owner: str, option: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is none of ``choices``.

    Raises:
        InputError: it names owner, option, value and the choices.
    """
    known = tuple(choices)
    if value not in known:
        raise InputError(f"{owner}: {unknown_name(option, str(value), known)}")


def check_flag(owner: str, option: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        InputError: it names owner, option and value.
    """
    if not isinstance(value, bool):
        raise InputError(f"{owner} needs {option} true or false; got {value!r}")
