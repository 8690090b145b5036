"""What the tests of the command line share: its results, and the look of a refusal."""

from __future__ import annotations

from collections.abc import Callable

Tbpo = Callable[..., tuple[int, str, str]]
"""Runs the command in this process: words to exit code, stdout and stderr."""


def refused(found: tuple[int, str, str], message: str) -> None:
    code, out, err = found
    assert code == 2, err
    assert out == ""
    assert err.startswith(("tbpo: ", "Usage: ", "Error: "))
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1 or err.startswith("Usage: ")
