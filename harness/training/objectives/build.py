"""A name and options to an objective."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from harness import plugins
from harness.errors import InputError
from harness.training.objectives.base import Objective

NONE: Mapping[str, Any] = MappingProxyType({})


def build_objective(
    name: str, options: Mapping[str, Any], shared: Mapping[str, Any] = NONE
) -> Objective:
    """Return the objective registered as ``name`` with ``options`` as its fields.

    ``shared`` are options for whatever objective it is: given to it where it has them.

    Raises:
        InputError: unknown objective or option (the known ones are listed), or an unusable value.
    """
    make = cast("Callable[..., Objective]", plugins.load("objectives", name))
    known = sorted(inspect.signature(make).parameters)
    if extra := sorted(set(options) - set(known)):
        raise InputError(
            f"objective '{name}' has no option {', '.join(extra)}. "
            f"Options: {', '.join(known) or 'none'}."
        )
    given = {key: value for key, value in shared.items() if key in known} | dict(options)
    try:
        return make(**given)
    except TypeError as error:
        raise InputError(f"objective '{name}' cannot use the options {given}: {error}") from error
