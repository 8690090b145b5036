"""The verb ``tbpo diversity``: diversity of a file of samples, without an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli_config import json_option

if TYPE_CHECKING:
    from harness.diversity import Figure, FileDiversity


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@click.option(
    "--embeddings",
    is_flag=True,
    help="Embedding distance and Vendi score too; fetches a sentence model of 90 MB once, or "
    "takes the folder that TBPO_EMBEDDING_MODEL names.",
)
def diversity(file: Path, as_json: bool, embeddings: bool) -> None:
    """Measure the diversity of the samples in FILE, each figure with a 95 % interval.

    FILE is JSONL (plain or gzip), JSON, CSV or Parquet; a row is a prompt with its samples: id,
    prompt, samples: [{"text": ...}, ...]. Without --embeddings no model is needed. --json
    gives each metric under its key, such as distinct_1, with mean, interval and n.
    """
    from harness.diversity import file_diversity

    found = file_diversity(file, embeddings=embeddings)
    click.echo(json.dumps(found.row(), indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: FileDiversity) -> Iterator[str]:
    counts = sorted({found.fewest_samples, found.most_samples})
    yield f"{found.file}: {found.prompts} prompts, samples of each: {' to '.join(map(str, counts))}"
    for key, figure in found.metrics.items():
        yield _figure_line(key, figure)
        for reason, count in figure.reasons.items():
            yield f"    missing {count}: {reason}"


def _figure_line(key: str, figure: Figure) -> str:
    from harness.reading import estimate_text

    value = estimate_text(figure.estimate)
    return f"  {key:20} {value:28} {figure.unit}, n {figure.n}, missing {figure.missing}"
