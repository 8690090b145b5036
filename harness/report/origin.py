"""How a run was made, as labelled facts for the last section of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.text import clean, joined
from harness.types import Comparison, EngineCard, Form, Loadable, RunManifest, SuiteCard

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


def engine_facts(card: EngineCard) -> Facts:
    """Return an engine's identity and what is known of when its answers repeat."""
    return [*facts(card.identity), *(("Repeats", clean(text)) for text in card.guarantees)]


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


def sampling_text(card: SuiteCard, checkpoints: Sequence[Loadable]) -> str:
    """Return how a suite's answers were sampled, in words.

    A suite's parameters are those of the checkpoints that were asked; recorded answers were
    sampled as their makers chose.
    """
    sampling = card.sampling
    if sampling is None:
        if card.runner:
            return f"by {card.runner}, as it asks"
        return "nothing is asked: given answers are read"
    samples = f"{sampling.samples} {'answer' if sampling.samples == 1 else 'answers'} a prompt"
    recorded = [c.spec.name for c in checkpoints if c.form is Form.RECORDED]
    if recorded and len(recorded) == len(checkpoints):
        return f"as recorded, {samples}"
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    how += "".join(f" ({clean(n)} {value:g})" for n, value in card.temperatures.items())
    asked = f"{how}, top-p {sampling.top_p:g}, at most {sampling.max_tokens} tokens, {samples}"
    return f"{asked}; {clean(joined(recorded))} as recorded" if recorded else asked


def licence_text(card: SuiteCard) -> str:
    """Return the licence of a suite's data, and which file was read where it is not its own."""
    used = card.used
    if used is None:
        return clean(card.licence)
    left = [f"{count} x {reason}" for reason, count in used.left_out.items()]
    out = f"; left out: {clean('; '.join(left))}" if left else ""
    return f"{clean(card.licence)}; read from {clean(used.source)}, SHA-256 {used.sha256[:12]}{out}"


def weights_text(checkpoint: Loadable) -> str:
    """Return the head of a checkpoint's weight hash, or what is known in its place."""
    if checkpoint.form is Form.ENDPOINT:
        return "not seen"
    head = checkpoint.weights_sha256[:12]
    return head if checkpoint.form is Form.WEIGHTS else f"not seen (file {head})"


def dtype_text(checkpoint: Loadable) -> str:
    """Return a checkpoint's arithmetic, which is known only where its weights are here."""
    return checkpoint.spec.dtype.value if checkpoint.form is Form.WEIGHTS else "not known"
