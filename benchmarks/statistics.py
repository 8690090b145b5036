"""All win-rate statistics of a million judgments: seconds and memory; see ``million.py``.

    python benchmarks/statistics.py [--checkpoints 50] [--prompts 409] [--resamples 1000]

This file has the name of a module of Python's own, and Python looks into a script's folder first:
imported under that name, by whatever benchmark lies beside it, it steps aside for the real one.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def step_aside() -> None:
    """Put Python's own module in this one's place."""
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != FOLDER]
    spec = importlib.machinery.PathFinder.find_spec(__name__, elsewhere)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[__name__] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    from million import main

    sys.exit(main())
else:
    step_aside()
