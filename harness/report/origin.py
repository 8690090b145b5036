"""How a run was made, as labelled facts for the last section of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.report.text import clean
from harness.types import Comparison, RunManifest, Sampling

Facts = list[tuple[str, str]]


def value_text(value: Any) -> str:
    """Return a manifest value in words: lists and mappings as JSON with sorted keys."""
    if value is None:
        return "not recorded"
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))


def facts(values: Mapping[str, Any]) -> Facts:
    """Return a mapping as labelled facts, sorted by key."""
    return [(clean(key), value_text(values[key])) for key in sorted(values)]


def run_facts(comparison: Comparison) -> Facts:
    """Return what identifies the run and the statistics."""
    manifest = comparison.manifest
    return [
        ("Run key", manifest.run_key),
        ("Created", manifest.created),
        ("State", manifest.status.value),
        ("Seed of the run", str(manifest.seed)),
        ("Bootstrap", f"{comparison.resamples:,} resamples, seed {comparison.seed}"),
        ("Git commit", manifest.git_commit or "not recorded"),
        ("Schema", f"run {manifest.schema_version}, comparison {comparison.schema_version}"),
    ]


def counts(manifest: RunManifest) -> Facts:
    """Return present and expected records of each kind."""
    return [
        (clean(kind), f"{count.present:,} of {count.expected:,}")
        for kind, count in sorted(manifest.counts.items())
    ]


def sampling_text(sampling: Sampling) -> str:
    """Return sampling parameters in words."""
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    return (
        f"{how}, top-p {sampling.top_p:g}, at most {sampling.max_tokens} tokens, "
        f"{sampling.samples} {'answer' if sampling.samples == 1 else 'answers'} a prompt"
    )
