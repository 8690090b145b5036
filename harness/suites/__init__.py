"""Suites: a YAML declaration and a file of rows, loaded and checked before any engine starts."""

from __future__ import annotations

from harness.suites.declaration import (
    DataRef,
    Fields,
    HubFile,
    Suite,
    SuiteKind,
    SuiteSpec,
    TrainingSuite,
    TrainingSuiteSpec,
    read_yaml,
    validation_text,
)
from harness.suites.loading import (
    cut,
    limited,
    lm_eval_suites,
    load_suite,
    load_suites,
    load_training_suite,
    read_spec,
)
from harness.suites.names import (
    OUTPUTS,
    Group,
    declared_name,
    known_groups,
    known_suites,
    resolve_names,
    suite_kind,
)

__all__ = [
    "OUTPUTS",
    "DataRef",
    "Fields",
    "Group",
    "HubFile",
    "Suite",
    "SuiteKind",
    "SuiteSpec",
    "TrainingSuite",
    "TrainingSuiteSpec",
    "cut",
    "declared_name",
    "known_groups",
    "known_suites",
    "limited",
    "lm_eval_suites",
    "load_suite",
    "load_suites",
    "load_training_suite",
    "read_spec",
    "read_yaml",
    "resolve_names",
    "suite_kind",
    "validation_text",
]
