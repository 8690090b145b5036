"""General capability: lm-eval's tasks on the engine that samples the answers.

lm-eval keeps the prompts, the few-shot examples, the metrics and the filters; here are a model of
its kind over a running engine, its tasks over local data, and scores by document.
"""

from __future__ import annotations

from harness.capability.evaluate import evaluate
from harness.capability.tasks import (
    AVERAGE,
    CapabilitySpec,
    CapabilitySuite,
    TaskChoice,
    load_capability_suite,
)

__all__ = [
    "AVERAGE",
    "CapabilitySpec",
    "CapabilitySuite",
    "TaskChoice",
    "evaluate",
    "load_capability_suite",
]
