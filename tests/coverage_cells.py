"""Rows of benchmarks/coverage.py, simulated a few times: a quick version for the tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "coverage.py"

needs_benchmarks = pytest.mark.skipif(
    not PATH.is_file(), reason="needs benchmarks/coverage.py, which the sdist leaves out"
)


def simulations() -> ModuleType:
    """Return benchmarks/coverage.py as a module, under a name that hides no package."""
    name = "tbpo_benchmark_coverage"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PATH)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def coverage(name: str, n: int, size: int, evaluations: int = 250) -> float:
    """Return the coverage of a row's 95 % interval, with a standard error of 1.4 points."""
    found = simulations()
    row = next(row for row in found.INTERVALS if row.name == name)
    return float(found.coverage(row, found.Shape(n, size), evaluations))
