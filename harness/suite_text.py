"""Suites in words: how they ask, what they measure, what was found in their data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.suite_view import Lengths, SuiteView
from harness.suites import DataRef, SuiteSpec
from harness.suites.declaration import Duplicates, Empty
from harness.types import Direction
from harness.types.records import PromptStyle

STYLES = {
    PromptStyle.CHAT: "in the checkpoint's chat template",
    PromptStyle.PLAIN: "as plain text, without a chat template",
}

BETTER = {
    Direction.HIGHER: "higher is better",
    Direction.LOWER: "lower is better",
    Direction.NEITHER: "neither direction is better",
}


def sampling_lines(spec: SuiteSpec) -> list[str]:
    """Return how answers are sampled, in words; the temperatures of subsets stand last."""
    asked = spec.sampling
    if asked is None:
        return ["nothing is asked: answers that are given with the data are read"]
    heat = (
        "greedy (temperature 0)" if asked.temperature == 0 else f"temperature {asked.temperature:g}"
    )
    nucleus = f", top-p {asked.top_p:g}" if asked.top_p < 1 else ""
    answers = "one answer" if asked.samples == 1 else f"{asked.samples} answers"
    lines = [f"{heat}{nucleus}, {answers} a prompt of at most {asked.max_tokens:,} tokens"]
    if asked.stop:
        lines.append(f"an answer ends at {' or '.join(map(repr, asked.stop))}")
    if spec.temperatures:
        lines.append("temperature by subset: " + counts_text(spec.temperatures))
    return lines


def rows_text(data: DataRef) -> str:
    """Return which rows of a suite's file are taken, in words."""
    taken = f"{data.rows:,}, chosen by hash with seed {data.seed or 0}" if data.rows else "all"
    repeated = {
        Duplicates.REFUSE: "a prompt that occurs twice is refused",
        Duplicates.DROP: "of rows with one prompt the first",
        Duplicates.KEEP: "those with one prompt each count",
    }[data.duplicates]
    empty = "; rows with an empty prompt are left out" if data.empty is Empty.DROP else ""
    return f"{taken}; {repeated}{empty}"


def counts_text(counts: Mapping[str, float]) -> str:
    """Return ``NAME 3, OTHER 0.5``."""
    return ", ".join(f"{name} {count:g}" for name, count in counts.items())


def left_out_text(left_out: Mapping[str, int]) -> str:
    """Return why rows became no example, each reason with its count."""
    return "; ".join(f"{count} x {reason}" for reason, count in left_out.items())


def either(names: str | Sequence[str]) -> str:
    """Return the names of fields of which the first that a row has counts."""
    return names if isinstance(names, str) else " or ".join(names)


def view_lines(found: SuiteView) -> Iterator[str]:
    """Yield what a suite asks as lines of text, the prompt that is shown last."""
    spec = found.spec
    yield f"{spec.name}  v{spec.version}  {found.examples} examples  {spec.title}"
    yield f"  {spec.description}"
    yield from (f"  {title}: {text}" for title, text in _about(found))
    yield f"  prompts in characters: {_lengths_text(found.characters)}"
    yield from _token_lines(found)
    yield f"  first prompt: {found.rendering.example_id}"
    yield found.rendering.text


def _about(found: SuiteView) -> Iterator[tuple[str, str]]:
    spec, used = found.spec, found.used
    yield "prompts", STYLES[spec.style]
    yield "sampling", "; ".join(sampling_lines(spec))
    yield from _measured(found)
    yield "data", f"{used.source} ({used.rows:,} rows), SHA-256 {used.sha256}"
    yield "rows taken", rows_text(spec.data)
    yield "licence", spec.data.licence
    if spec.citation:
        yield "citation", spec.citation
    if used.left_out:
        yield "rows left out", left_out_text(used.left_out)
    if found.subsets:
        yield "subsets", counts_text(found.subsets)
    if found.dialogues < found.examples:
        yield "dialogues", str(found.dialogues)
    yield "content", found.content_sha256


def _measured(found: SuiteView) -> Iterator[tuple[str, str]]:
    yield "metrics", ", ".join(found.spec.metrics)
    for info in found.metrics:
        first = "primary, " if info.key in found.spec.primary else ""
        about = f"{info.unit}, {BETTER[info.direction]}"
        yield f"  {info.key}", f"{first}{about}: {info.definition}"
    yield "judges", ", ".join(found.spec.judges) or "none"
    for judge in found.judges:
        yield f"  {judge.name}", judge.definition


def _lengths_text(lengths: Lengths) -> str:
    return f"median {lengths.median:,.0f}, longest {lengths.longest:,}"


def _token_lines(found: SuiteView) -> Iterator[str]:
    shown = found.rendering
    if shown.tokens is None:
        yield f"  prompts in tokens: not known, {shown.reason}"
        return
    yield (
        f"  prompts in tokens of {shown.checkpoint}: {_lengths_text(shown.tokens)}, all "
        f"{shown.tokens.prompts:,} together {shown.tokens.total:,}"
    )
    if shown.longest_later is not None:
        yield (
            f"  later questions of dialogues: at most {shown.longest_later:,} tokens, the "
            "answers before them included"
        )
