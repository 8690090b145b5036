"""Pages about suites in Markdown, from their declarations alone: nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.capability.local import FORMS
from harness.checks import check_keys, named_judges, named_metrics
from harness.errors import InputError
from harness.files import write_atomic
from harness.stability import DIVERGENCE, FIGURES
from harness.suite_text import STYLES, either, rows_text, sampling_lines
from harness.suite_view import dialogues
from harness.suites import (
    DataRef,
    Fields,
    Group,
    SuiteKind,
    SuiteSpec,
    TrainingSuiteSpec,
    known_groups,
    known_suites,
    load_suite,
    load_training_suite,
    read_spec,
    suite_kind,
)
from harness.types import Direction, Estimate, JudgeInfo, MetricInfo

if TYPE_CHECKING:
    from harness.capability.tasks import CapabilitySpec

INDEX = "README.md"

WRITTEN = "<!-- Written by `tbpo suites docs`; edit the suite's YAML instead. -->"

BETTER = {Direction.HIGHER: "higher", Direction.LOWER: "lower", Direction.NEITHER: "neither"}

Lines = Iterator[str]


def write_pages(folder: Path, paths: Sequence[Path] | None = None) -> list[Path]:
    """Write a page for each suite and an index; return what was written.

    Args:
        folder: made where it does not exist.
        paths: of the suites' YAML files; of all packaged suites, with their groups, where None.

    Raises:
        InputError: a declaration is wrong, names what is not installed, or two have one name.
    """
    made = pages(paths)
    if folder.is_file():
        raise InputError(f"--output {folder} is a file; name a folder")
    for name, text in made.items():
        write_atomic(folder / name, text)
    return [folder / name for name in made]


def pages(paths: Sequence[Path] | None = None) -> dict[str, str]:
    """Return the text of each page by its file's name; see `write_pages`."""
    groups = known_groups() if paths is None else {}
    found: dict[str, str] = {}
    rows: list[str] = []
    for path in known_suites().values() if paths is None else paths:
        name, title, holds, text = _page(path)
        if f"{name}.md" in found:
            raise InputError(f"two suites have one name: {name}")
        found[f"{name}.md"] = text
        rows.append(_row(f"[{name}]({name}.md)", holds, title))
    return {INDEX: _joined(_index(rows, groups)), **found}


def _page(path: Path) -> tuple[str, str, str, str]:
    """Return a suite's name, title, what it holds in a few words, and its page."""
    kind = suite_kind(path)
    if kind is SuiteKind.TRAINING:
        suite = load_training_suite([str(path)])
        assert suite is not None
        read = suite.spec
        return read.name, read.title, "training logs", _joined(_training(read))
    if kind is SuiteKind.LM_EVAL:
        from harness.capability.tasks import load_capability_suite

        run = load_capability_suite(path).spec
        return run.name, run.title, f"{len(run.tasks)} tasks of lm-eval", _joined(_tasks(run))
    spec = read_spec(path)
    count = _examples(path, spec)
    holds = f"{count} examples" if count else f"data from {_place(spec.data)}"
    return spec.name, spec.title, holds, _joined(_prompts(path, spec))


def _place(data: DataRef) -> str:
    if data.hub is not None:
        return f"`{data.hub.dataset}`"
    return f"[{str(data.url).rsplit('/', 1)[-1]}]({data.url})"


def _examples(path: Path, spec: SuiteSpec) -> int | None:
    """Return how many examples a suite has whose data come with it; None for any other."""
    return len(load_suite(path).examples) if spec.data.path is not None else None


def _index(rows: Sequence[str], groups: Mapping[str, Group]) -> Lines:
    yield from (WRITTEN, "", "# Suites", "")
    yield "A page for each suite. Where the data come from elsewhere they are fetched when the "
    yield "suite is first run, and `--data NAME=PATH` takes a copy of your own."
    yield from ("", *_table("suite", "holds", "title"), *rows)
    if groups:
        yield from ("", "## Groups", "", "Several suites under one name: `tbpo run --suite GROUP`.")
        yield from ("", *_table("group", "suites", "prompts of each", "what", "judges"))
        for name, group in groups.items():
            listed = ", ".join(group.suites)
            most = f"about {group.limit}" if group.limit else "all"
            yield _row(f"`{name}`", listed, most, group.title, group.judges or "the suites' own")


def _head(spec: SuiteSpec | TrainingSuiteSpec | CapabilitySpec) -> Lines:
    yield from (WRITTEN, "", f"# {spec.title}", "")
    yield from (f"Suite `{spec.name}`, version {spec.version}.", "", spec.description.strip())


def _prompts(path: Path, spec: SuiteSpec) -> Lines:
    yield from _head(spec)
    yield from ("", "## Data", "", *_data(path, spec))
    yield from ("", "## Rows", "", *_fields(spec.fields))
    yield from ("", "## Prompts and sampling", "", *_asked(spec), "", "## Metrics", "")
    metrics = named_metrics(spec.metrics)
    check_keys(spec, metrics)
    yield from _metrics((i for n in spec.metrics for i in metrics[n].info), spec.primary)
    yield from ("", "## Judges", "", *_judges(spec))
    yield from (*_citation(spec.citation), *_commands(spec.name, "PATH"))


def _data(path: Path, spec: SuiteSpec) -> Lines:
    data = spec.data
    yield from _table("", "")
    yield from (_row(*pair) for pair in _source(data))
    yield _row("SHA-256 of the file", f"`{data.sha256}`" if data.sha256 else "not declared")
    yield _row("licence", data.licence)
    yield _row("rows taken", rows_text(data))
    yield _row("longest prompt taken", f"{data.longest_prompt:,} characters")
    if data.path is not None:
        suite = load_suite(path)
        yield _row("examples", f"{len(suite.examples):,}")
        yield _row("dialogues", f"{dialogues(suite):,}")
        yield _row("SHA-256 of the content", f"`{suite.content_sha256}`")


def _source(data: DataRef) -> Iterator[tuple[str, str]]:
    if data.hub is not None:
        yield "source", f"data set `{data.hub.dataset}` of the Hugging Face hub"
        yield "file", f"`{data.hub.file}`"
        yield "revision", f"`{data.hub.revision}`" if data.hub.revision else "the newest"
        if data.hub.split:
            yield "split", data.hub.split
    elif data.url is not None:
        yield "source", f"<{data.url}>"
    else:
        yield "source", f"`{data.path}`, part of the package"


def _fields(fields: Fields) -> Lines:
    if fields.user is not None:
        yield from ("The prompt is this template, filled from the row:", "", "```text")
        yield from (*fields.user.splitlines(), "```")
    elif fields.turns is not None:
        yield f"`{either(fields.turns)}` holds the user's turns, asked one after the other: between"
        yield "them stands what the model itself answered. Each turn is an example."
    elif fields.pair:
        yield "A row is a preference pair: the prompt is what both answers share, the better answer"
        yield "is the reference, and the worse one the rejected answer."
    else:
        yield "A row holds the chat in `messages` (`role`, `content`); the last turn is the user's."
    listed = list(_columns(fields))
    if listed:
        yield from ("", *_table("field", "holds"), *(_row(f"`{a}`", b) for a, b in listed))


def _columns(fields: Fields) -> Iterator[tuple[str, str]]:
    for names, holds in (
        (fields.id, "id"),
        (fields.reference, "reference answer"),
        (fields.rejected, "a worse answer"),
        (fields.subset, "subset"),
        (fields.instructions, "verifiable instructions"),
        (fields.arguments, "arguments of the instructions"),
    ):
        if names is not None:
            yield either(names), holds
    if fields.id_from_prompt:
        yield "id", "not read: examples are named by the hash of their prompt"
    if fields.expected is not None:
        about = fields.expected
        yield (
            about.field,
            f"to be answered: {', '.join(about.answer) or 'none'}; to be refused: "
            f"{', '.join(about.refuse) or 'none'}",
        )


def _asked(spec: SuiteSpec) -> Lines:
    yield f"Each prompt is put {STYLES[spec.style]}."
    words = "; ".join(sampling_lines(spec))
    yield f"Answers: {words}." if spec.sampling is not None else f"{words.capitalize()}."


def _metrics(infos: Iterator[MetricInfo], primary: Sequence[str]) -> Lines:
    yield "Primary metrics, which the summary and the gate look at, are in bold."
    yield from ("", *_definitions(infos, primary))


def _definitions(infos: Iterator[MetricInfo], primary: Sequence[str]) -> Lines:
    yield from _table("metric", "better", "unit", "definition")
    for info in infos:
        key = f"**{info.key}**" if info.key in primary else info.key
        yield _row(key, BETTER[info.direction], info.unit, f"{info.title}. {info.definition}")


def _judges(spec: SuiteSpec) -> Lines:
    if spec.sampling is None:
        yield "None: there are no answers of the checkpoint's to judge."
        return
    if not spec.judges:
        yield "None by default; `tbpo run --judge NAME=SOURCE` names a language model."
        return
    yield from _table("judge", "verdict", "agreement with people")
    for judge in named_judges(spec.judges).values():
        yield _row(f"`{judge.info.name}`", judge.info.definition, _agreement(judge.info))


def _agreement(info: JudgeInfo) -> str:
    if info.agreement is None:
        return "a rule defines the verdict" if info.by_rule else "not measured"
    return f"{_estimate(info.agreement)} on {info.measured_on}"


def _estimate(found: Estimate) -> str:
    if found.value is None:
        return "not known"
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _training(spec: TrainingSuiteSpec) -> Lines:
    yield from (*_head(spec), "", "## Data", "")
    yield "No prompts: the training logs beside each checkpoint's weights are read, or those that"
    yield "`training_logs=` names."
    yield from ("", "## Parameters", "", "Lengths are counted in logged steps.", "")
    yield from _table("parameter", "value")
    for name, value in spec.parameters.model_dump().items():
        yield _row(f"`{name}`", f"{value:g}")
    figures = (figure.info(spec.parameters) for figure in FIGURES)
    yield from ("", "## Figures", "", DIVERGENCE.format(**spec.parameters.model_dump()), "")
    yield from _definitions(figures, ())
    yield from (*_citation(spec.citation), *_commands(spec.name, None))


def _tasks(spec: CapabilitySpec) -> Lines:
    yield from (*_head(spec), "", "## Data", "")
    yield f"lm-eval's own, fetched by it. Licences: {spec.licence}."
    if local := {c.task: FORMS[c.task].wanted for c in spec.tasks if c.task in FORMS}:
        yield from ("", f"`--data {spec.name}=FOLDER` takes local copies, in the hub's columns or")
        yield from ("those of the published sources:", "", *_table("task", "files"))
        yield from (_row(f"`{task}`", files) for task, files in local.items())
    yield from ("", "## Tasks", "", *_table("task", "solved examples", "metric", "filter", "key"))
    for choice in spec.tasks:
        names = (f"`{choice.task}`", str(choice.shots), choice.metric, choice.filter, choice.name)
        yield _row(*names)
    style = "in the checkpoint's chat template" if spec.chat_template else "as plain text"
    yield from ("", f"Prompts are put {style}. Seed of the solved examples: {spec.fewshot_seed}.")
    yield from ("", "## Metrics", "", *_metrics(iter(spec.metrics), spec.primary))
    yield from (*_citation(spec.citation), *_commands(spec.name, "FOLDER"))


def _citation(text: str) -> Lines:
    if text.strip():
        yield from ("", "## Citation", "", text.strip())


def _commands(name: str, copy: str | None) -> Lines:
    """Yield what to type; ``copy`` stands for the user's own data, where the suite takes them."""
    yield from ("", "## Commands", "", "```sh")
    yield f"tbpo suites show {name}"
    yield f"tbpo run --suite {name} --checkpoint NAME=SOURCE --output results/{name}"
    if copy is not None:
        yield f"tbpo run --suite {name} --data {name}={copy} --checkpoint NAME=SOURCE \\"
        yield f"  --output results/{name}"
    yield "```"


def _table(*titles: str) -> tuple[str, str]:
    return _row(*titles), "|" + "---|" * len(titles)


def _row(*cells: str) -> str:
    escaped = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _joined(lines: Iterator[str]) -> str:
    return "\n".join(line.rstrip() for line in lines) + "\n"
