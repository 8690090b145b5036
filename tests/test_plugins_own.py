"""A suite, a metric and a judge of one's own: a YAML file, and one module with entry points."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_records import Tbpo, refused
from fake_engine import FakeEngine, FakeReference
from suite_records import NAMES

from harness import pipeline, store
from harness.engines import Completion, Request
from harness.groups import EngineGroup
from harness.store import GENERATIONS, JUDGMENTS, SCORES, RunFolder, read_run
from harness.types import REFERENCE, Outcome, Status

EXAMPLES = Path(__file__).parents[1] / "examples"
SUITE, PLUGIN = EXAMPLES / "my_suite.yaml", EXAMPLES / "own_metric"

ROWS = [json.loads(line) for line in (EXAMPLES / "my_suite.jsonl").read_text().splitlines()]


class ListingEngine(FakeEngine):
    """Answers with a list wherever the prompt has an even number of tokens."""

    def answer(self, request: Request) -> Completion:
        made = super().answer(request)
        return (
            made
            if len(request.prompt) % 2
            else made.model_copy(update={"text": f"Here:\n- {made.text}"})
        )


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEngine.forget()
    monkeypatch.setattr(
        EngineGroup, "make", lambda group, seed: ListingEngine(group.settings, seed)
    )
    monkeypatch.setattr(pipeline, "ReferenceModel", FakeReference)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's package as pip would register it: its module and its entry points on a path."""
    install(tmp_path / "site", monkeypatch, points())


def points() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = tomllib.loads((PLUGIN / "pyproject.toml").read_text())[
        "project"
    ]["entry-points"]
    return found


def install(
    site: Path, monkeypatch: pytest.MonkeyPatch, registered: dict[str, dict[str, str]]
) -> None:
    info = site / "own_metric-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-metric\nVersion: 1.0\n")
    lines = [
        line
        for group, names in registered.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in names.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.delitem(sys.modules, "own_metric", raising=False)


def write_suite(folder: Path, **changes: Any) -> Path:
    """Write the example's suite with other metrics and judges beside a copy of its rows."""
    (folder / "my_suite.jsonl").write_bytes((EXAMPLES / "my_suite.jsonl").read_bytes())
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SUITE.read_text()) | changes))
    return path


def finished(tbpo: Tbpo, given: Path, suite: Path, output: Path) -> RunFolder:
    checkpoints = [word for n in NAMES[:2] for word in ("--checkpoint", f"{n}={given / n}")]
    code, _, err = tbpo("run", *checkpoints, "--suite", suite, "--output", output)
    assert code == 0, err
    return read_run(output)


# The suite.


def test_suite_is_short_and_valid(tbpo: Tbpo) -> None:
    assert len(SUITE.read_text().splitlines()) < 40
    code, out, err = tbpo("suites", "validate", SUITE)
    assert (code, err) == (0, "")
    assert out.startswith(f"my_suite  v1  {len(ROWS)} examples, {len(ROWS)} dialogues  ")


@pytest.mark.usefixtures("engine")
def test_suite_is_run_from_end_to_end(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    run = finished(tbpo, given, SUITE, tmp_path / "run")
    assert run.manifest.status is Status.COMPLETE
    (card,) = run.manifest.suites
    assert (card.name, card.examples, card.has_reference) == ("my_suite", len(ROWS), True)
    asked = {row.example.id: row.example for row in run.records(store.EXAMPLES)}
    assert {i: e.messages[0].content for i, e in asked.items()} == {
        r["id"]: f"Explain the cooking term '{r['term']}' in one or two sentences." for r in ROWS
    }
    assert {i: (e.subset, e.reference) for i, e in asked.items()} == {
        r["id"]: (r["about"], r["explanation"]) for r in ROWS
    }
    scored = {(s.checkpoint, s.example_id) for s in run.records(SCORES) if s.metric == "rouge_lsum"}
    assert scored == {(name, row["id"]) for name in NAMES[:2] for row in ROWS}
    assert len(run.records(JUDGMENTS)) == len(ROWS)
    assert "Terms of the kitchen" in (tmp_path / "run" / "report.md").read_text()


# The metric and the judge.


def test_module_and_its_declaration_are_one_short_file_each() -> None:
    assert {p.name for p in PLUGIN.iterdir() if p.is_file()} == {"pyproject.toml", "own_metric.py"}
    assert len((PLUGIN / "own_metric.py").read_text().splitlines()) < 60


def test_unregistered_names_are_refused(tmp_path: Path, tbpo: Tbpo) -> None:
    refused(
        tbpo("suites", "validate", write_suite(tmp_path, metrics=["lists"], primary=["lists"])),
        "unknown metric 'lists'",
    )


@pytest.mark.usefixtures("engine", "installed")
def test_registered_metric_and_judge_are_used(given: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_suite(tmp_path, metrics=["lists"], judges=["shorter"], primary=["lists"])
    code, out, err = tbpo("suites", "validate", suite)
    assert (code, err) == (0, "")
    assert out.startswith("my_suite  v1  6 examples")
    assert "  lists: primary, share, neither" in tbpo("suites", "show", suite)[1]
    run = finished(tbpo, given, suite, tmp_path / "run")
    texts = {(g.checkpoint, g.example_id): g.text for g in run.records(GENERATIONS)}
    scores = {(s.checkpoint, s.example_id): s.value for s in run.records(SCORES)}
    assert scores == {key: float("\n- " in text) for key, text in texts.items()}
    assert set(scores.values()) == {0.0, 1.0}
    texts |= {(REFERENCE, row["id"]): row["explanation"] for row in ROWS}
    verdicts = run.records(JUDGMENTS)
    assert len(verdicts) == 3 * len(ROWS)  # the checkpoints, and each against the reference
    for verdict in verdicts:
        sides = (verdict.candidate, verdict.baseline)
        ours, theirs = (len(texts[side, verdict.example_id].strip()) for side in sides)
        expected = Outcome.WIN if ours < theirs else Outcome.LOSS
        assert verdict.outcome is (Outcome.TIE if abs(ours - theirs) < 10 else expected)
    (info,) = run.manifest.judges
    assert (info.name, info.title) == ("shorter", "Shorter answer")


@pytest.mark.parametrize(
    ("registered", "message"),
    [
        ({"tbpo.metrics": {"lists": "own_metric:Gone"}}, "'lists' (own_metric:Gone) cannot be"),
        ({"tbpo.metrics": {"lists": "own_metric:Shorter"}}, "metrics 'lists' lacks 'score'"),
        ({"tbpo.metrics": {"lists": "own_metric:answer_score"}}, "'lists' cannot be made without"),
        (
            points() | {"tbpo.judges": {"brief": "own_metric:Shorter"}},
            "judge 'brief' calls itself 'shorter'",
        ),
        (
            points() | {"tbpo.metrics": {"lists": "own_metric:Lists", "lines": "own_metric:Lists"}},
            "metric key 'lists' is produced by both 'lists' and 'lines'",
        ),
    ],
)
def test_unfit_plugin_is_refused_with_its_name(
    tmp_path: Path,
    tbpo: Tbpo,
    monkeypatch: pytest.MonkeyPatch,
    registered: dict[str, dict[str, str]],
    message: str,
) -> None:
    install(tmp_path / "site", monkeypatch, registered)
    metrics = list(registered["tbpo.metrics"])
    judges = list(registered.get("tbpo.judges", ()))
    suite = write_suite(tmp_path, metrics=metrics, judges=judges, primary=["lists"])
    refused(tbpo("suites", "validate", suite), message)


def test_example_package_builds(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling (extra dev)")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(words, cwd=PLUGIN, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        listed = archive.read("own_metric-1.0.dist-info/entry_points.txt").decode()
    assert "own_metric.py" in names
    assert "lists = own_metric:Lists" in listed
