"""Names to objects through entry points; the built-ins come through the same door.

Groups: ``tbpo.adapters``, ``tbpo.engines``, ``tbpo.metrics``, ``tbpo.judges``,
``tbpo.objectives``. Nothing is imported before it is asked for.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from harness.errors import InputError, unknown_name


def _found(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"tbpo.{group}"):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise InputError(
                f"two packages offer {group} '{point.name}': {other.value} and {point.value}. "
                "Uninstall one of them or rename its entry point."
            )
    return found


def names(group: str) -> list[str]:
    """Return the sorted names registered in ``group`` (without the ``tbpo.`` prefix)."""
    return sorted(_found(group))


def load(group: str, name: str) -> object:
    """Import and return the object registered as ``name`` in ``group``.

    Raises:
        InputError: the name is unknown (the message lists the known ones), two packages claim
            it, or it cannot be imported.
    """
    found = _found(group)
    if name not in found:
        raise unknown_name(group.removesuffix("s"), name, found)
    point = found[name]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{group} '{name}' ({point.value}) cannot be imported: {error}") from error
