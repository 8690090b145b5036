"""Outputs recorded earlier, in the forms that benchmarks and harnesses leave them in."""

from __future__ import annotations

from harness.adapters.recorded.adapter import Recorded
from harness.adapters.recorded.answers import RecordedAnswer
from harness.adapters.recorded.outputs import outputs_suite, recorded_suite
from harness.adapters.recorded.reading import read_recorded

__all__ = ["Recorded", "RecordedAnswer", "outputs_suite", "read_recorded", "recorded_suite"]
