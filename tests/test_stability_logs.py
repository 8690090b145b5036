"""Training logs: found beside the weights, read strictly, carried through a run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_engine import FakeEngine, FakeReference, Killed
from stability_records import log_rows, write_log, write_seeds
from suite_records import NAMES, run_config

from harness import pipeline
from harness.errors import DataError, InputError, RunFolderError
from harness.groups import EngineGroup
from harness.pipeline import run
from harness.plan import make_plan
from harness.reading import compare_run, summary_text
from harness.store import TRAINING, read_run
from harness.suites import load_suites, load_training_suite
from harness.training_logs import NO_LOG, OPTIONAL, find_logs, parse_log
from harness.types import CheckpointSpec, Comparison, RunManifest, Status

GOOD = {"step": 1, "loss": 0.7, "gradient_norm": 1.0, "kl_reference_policy": 0.0}


# Finding.


def test_seed_folders_come_before_the_lone_log(tmp_path: Path) -> None:
    write_seeds(tmp_path, "dpo", (10, 2))
    write_log(tmp_path / "train_log.jsonl", log_rows("dpo", 2))
    found = find_logs("dpo", tmp_path)
    assert [log.seed for log in found.source.logs] == [2, 10]
    assert [log.file for log in found.source.logs] == [
        "seeds/seed-2/train_log.jsonl",
        "seeds/seed-10/train_log.jsonl",
    ]
    assert [log.rows for log in found.source.logs] == [64, 64]
    content = (tmp_path / "seeds/seed-2/train_log.jsonl").read_bytes()
    assert found.source.logs[0].sha256 == hashlib.sha256(content).hexdigest()
    assert {(r.checkpoint, r.seed) for r in found.rows} == {("dpo", 2), ("dpo", 10)}


@pytest.mark.parametrize(
    ("manifest", "seed"),
    [('{"recipe": {"seed": 3}}', 3), ('{"recipe": {}}', None), ("[]", None), ("{", None)],
)
def test_the_lone_log_has_the_seed_of_its_manifest(
    tmp_path: Path, manifest: str, seed: int | None
) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    write_log(tmp_path / "train_log.jsonl", [GOOD])
    assert find_logs("dpo", tmp_path).source.logs[0].seed == seed


def test_no_log_is_a_reason_not_an_error(tmp_path: Path) -> None:
    found = find_logs("base", tmp_path)
    assert (found.source.reason, found.source.logs, found.rows) == (NO_LOG, (), ())


def test_a_seed_folder_without_a_log_is_noted(tmp_path: Path) -> None:
    write_seeds(tmp_path, "dpo", (0,))
    (tmp_path / "seeds" / "seed-1").mkdir()
    assert find_logs("dpo", tmp_path).source.notes == (
        "seed 1: seeds/seed-1 holds no train_log.jsonl",
    )


def test_logs_may_be_named_elsewhere(tmp_path: Path) -> None:
    write_seeds(tmp_path / "logs", "dpo")
    weights = tmp_path / "weights"
    assert len(find_logs("dpo", weights, str(tmp_path / "logs")).source.logs) == 3
    one = tmp_path / "logs" / "seeds" / "seed-1" / "train_log.jsonl"
    (log,) = find_logs("dpo", weights, str(one)).source.logs
    assert (log.file, log.seed) == ("train_log.jsonl", None)
    with pytest.raises(InputError, match=r"'dpo': no training log in .*nowhere"):
        find_logs("dpo", weights, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("names", [("seed-x",), ("seed-1", "seed-01")])
def test_seed_folders_must_name_seeds(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_log(tmp_path / "seeds" / name / "train_log.jsonl", [GOOD])
    with pytest.raises(InputError, match="seed"):
        find_logs("dpo", tmp_path)


# Reading.


def lines(*rows: dict[str, Any] | str) -> bytes:
    texts = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    return "".join(f"{text}\n" for text in texts).encode()


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ("{not json", "not valid JSON"),
        ('{"step": 2, "loss": 0.7', "not valid JSON"),
        ("[1]", "expected an object, found list"),
        ('{"step": 2, "loss": NaN, "gradient_norm": 1.0}', "NaN is not JSON"),
        ('{"step": 2, "loss": 0.7, "gradient_norm": -Infinity}', "-Infinity is not JSON"),
        ('{"step": 2, "loss": 1e999, "gradient_norm": 1.0}', "'loss' is too large"),
        (GOOD | {"step": 2, "loss": 10**400}, "'loss' is too large"),
        (GOOD | {"step": 2, "loss": None}, "'loss' is null"),
        ({"step": 2, "loss": 0.7, "kl_reference_policy": 0.0}, "'gradient_norm' is missing"),
        ({"step": 2, "loss": 0.7, "gradient_norm": 1.0}, "'kl_reference_policy' is missing"),
        (GOOD | {"step": 2, "loss": "0.7"}, "'loss' is not a number"),
        (GOOD | {"step": 2, "loss": True}, "'loss' is not a number"),
        (GOOD | {"step": 1}, "step 1 comes after step 1"),
        (GOOD | {"step": 0}, "step 0 comes after step 1"),
        (GOOD | {"step": 2.5}, "'step' must be a whole number"),
        (GOOD | {"step": -1}, "'step' must be a whole number"),
        ({k: v for k, v in GOOD.items() if k != "step"}, "'step' must be a whole number"),
        (GOOD | {"step": 2, "held_out_accuracy": 61.5}, "must lie between 0 and 1"),
        (GOOD | {"step": 2, "held_out_pairs": 0}, "'held_out_pairs' must be a whole number"),
        (GOOD | {"step": 2, "learning_rate": -1e-5}, "'learning_rate' must not be negative"),
        (GOOD | {"step": 2, "tokens": 0}, "'tokens' must be a whole number"),
    ],
)
def test_a_wrong_line_is_named(second: dict[str, Any] | str, problem: str) -> None:
    with pytest.raises(DataError, match=rf"^log\.jsonl:3: .*{re.escape(problem)}"):
        parse_log(lines(GOOD, "", second), Path("log.jsonl"), "dpo", 0)


def test_bytes_that_are_no_text_are_named() -> None:
    with pytest.raises(DataError, match=r"log\.jsonl:1: not valid UTF-8"):
        parse_log(b"\xff\n", Path("log.jsonl"), "dpo", 0)


def test_an_empty_log_is_refused() -> None:
    with pytest.raises(DataError, match="the training log is empty"):
        parse_log(b"\n\n", Path("log.jsonl"), "dpo", 0)


def test_a_diverged_row_may_lack_its_values_and_must_be_the_last() -> None:
    end = {"step": 2, "diverged": "loss is nan", "loss": None}
    rows = parse_log(lines(GOOD, end), Path("log.jsonl"), "dpo", 0)
    assert [r.diverged for r in rows] == [None, "loss is nan"]
    assert (rows[1].loss, rows[1].gradient_norm) == (None, None)
    with pytest.raises(DataError, match=r"log\.jsonl:3: a step follows step 2"):
        parse_log(lines(GOOD, end, GOOD | {"step": 3}), Path("log.jsonl"), "dpo", 0)
    (kept,) = parse_log(lines(GOOD | {"diverged": None}), Path("log.jsonl"), "dpo", 0)
    assert kept.diverged is None


def test_other_keys_and_a_missing_last_line_end_are_accepted() -> None:
    given = lines(*log_rows("dpo", 0)).rstrip(b"\n")
    rows = parse_log(given, Path("log.jsonl"), "dpo", 0)
    assert len(rows) == 64
    assert rows[-1].held_out_pairs == 200


@pytest.mark.parametrize("field", ["learning_rate", "tokens"])
def test_rate_and_length_are_read_and_are_in_every_row_or_none(field: str) -> None:
    given = log_rows("dpo", 0)
    rows = parse_log(lines(*given), Path("log.jsonl"), "dpo", 0)
    assert [getattr(r, field) for r in rows] == [r[field] for r in given]
    del given[5][field]
    with pytest.raises(DataError, match=rf"log\.jsonl:6: field '{field}' is missing"):
        parse_log(lines(*given), Path("log.jsonl"), "dpo", 0)
    bare = [{k: v for k, v in r.items() if k != field} for r in given]
    rows = parse_log(lines(*bare), Path("log.jsonl"), "dpo", 0)
    assert {getattr(r, field) for r in rows} == {None}


# The suite.


def training_yaml(path: Path, **changes: Any) -> Path:
    declared = {
        "kind": "training",
        "name": "own_training",
        "version": 1,
        "title": "Own training",
        "description": "d",
    }
    path.write_text(yaml.safe_dump(declared | changes))
    return path


def test_packaged_suite_has_the_default_parameters() -> None:
    found = load_training_suite(["mini"])
    assert found is not None
    assert found.spec.parameters == type(found.spec.parameters)()
    assert load_training_suite(["hh"]) is None
    assert load_suites(["training_stability"]) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "trainings"}, "kind: expected prompts or training"),
        ({"parameters": {"windw": 4}}, "unknown key 'parameters.windw'"),
        ({"parameters": {"smoothing": 4}}, "must be odd"),
        ({"sampling": {}}, "unknown key 'sampling'"),
    ],
)
def test_wrong_declaration_is_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = training_yaml(tmp_path / "own.yaml", **changes)
    with pytest.raises(InputError, match=rf"own\.yaml.*{problem}"):
        load_training_suite([str(path)])


def test_two_training_suites_are_refused(tmp_path: Path) -> None:
    path = training_yaml(tmp_path / "own.yaml")
    with pytest.raises(InputError, match="two were given"):
        load_training_suite(["mini", str(path)])


# A run.


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEngine.forget()
    FakeReference.loads = []
    monkeypatch.setattr(EngineGroup, "make", lambda group, seed: FakeEngine(group.settings, seed))
    monkeypatch.setattr(pipeline, "ReferenceModel", FakeReference)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def configured(given: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a maker of configurations whose dpo and tbpo have logs elsewhere, the base none."""
    logs = {"dpo": tmp_path / "logs" / "dpo", "tbpo": tmp_path / "logs" / "tbpo"}
    write_seeds(logs["dpo"], "dpo")
    write_seeds(logs["tbpo"], "tbpo-q", (0,))

    def make(output: Path, **changes: Any) -> Any:
        specs = [
            CheckpointSpec(
                name=n,
                source=str(given / n),
                training_logs=str(logs[n]) if n in logs else None,
            )
            for n in NAMES
        ]
        suites = [str(given / "own.yaml"), "training_stability"]
        return run_config(given, output, **{"checkpoints": specs, "suites": suites} | changes)

    return make


@pytest.mark.usefixtures("fakes")
def test_training_alone_loads_no_model(configured: Callable[..., Any], tmp_path: Path) -> None:
    folder = read_run(run(configured(tmp_path / "run", suites=["training_stability"])))
    assert FakeEngine.started == 0
    assert FakeReference.loads == []
    assert folder.manifest.status == Status.COMPLETE
    assert len(folder.records(TRAINING)) == 4 * 64
    found = compare_run(tmp_path / "run")
    assert found.gaps == ()
    assert found.training is not None
    reasons = {c.checkpoint: c.reason for c in found.training.checkpoints}
    assert reasons == {"base": NO_LOG, "dpo": None, "tbpo": None}


@pytest.mark.usefixtures("fakes")
def test_run_folder_is_read_where_the_logs_are_gone(
    configured: Callable[..., Any], tmp_path: Path
) -> None:
    output = run(configured(tmp_path / "run"))
    manifest = read_run(output).manifest
    assert manifest.counts["training"].present == manifest.counts["training"].expected == 4 * 64
    assert manifest.training is not None
    logs = [log for source in manifest.training.sources for log in source.logs]
    assert all(re.fullmatch("[0-9a-f]{64}", log.sha256) for log in logs)
    before = compare_run(output).training
    (tmp_path / "logs").rename(tmp_path / "gone")
    assert compare_run(output).training == before
    assert before is not None
    text = summary_text(compare_run(output))
    assert "no training log" in text
    assert "1 seed, no spread" in text


@pytest.mark.usefixtures("fakes")
def test_copied_steps_keep_rate_and_length_and_older_folders_read(
    configured: Callable[..., Any], tmp_path: Path
) -> None:
    output = run(configured(tmp_path / "run", suites=["training_stability"]))
    file = output / TRAINING.file
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert {row["learning_rate"] for row in rows} == {5e-4}
    assert len({row["tokens"] for row in rows}) == 5
    write_log(file, [{k: v for k, v in r.items() if k not in OPTIONAL[:2]} for r in rows])
    found = compare_run(output).training
    assert found is not None
    peaks = [c.summaries[0] for c in found.checkpoints if not c.reason]
    assert {(s.figure, s.median, s.reason) for s in peaks} == {
        ("peak_learning_rate", None, "the log has no learning_rate")
    }


@pytest.mark.usefixtures("fakes")
def test_killed_run_goes_on_to_the_same_file(
    configured: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(configured(tmp_path / "whole")) / TRAINING.file
    with monkeypatch.context() as patched:
        patched.setattr(pipeline.RunFolder, "write_all", killed_at_training)
        with pytest.raises(Killed):
            run(configured(tmp_path / "run"))
    gaps = compare_run(tmp_path / "run").gaps
    assert "training logs, dpo, seed 0: 64 of 64 logged steps not copied" in gaps
    FakeEngine.forget()
    FakeEngine.fail_after = 5
    with pytest.raises(Killed):
        run(configured(tmp_path / "run"))
    FakeEngine.forget()
    assert (run(configured(tmp_path / "run")) / TRAINING.file).read_bytes() == whole.read_bytes()


WRITE_ALL = pipeline.RunFolder.write_all


def killed_at_training(self: Any, kind: Any, records: Any) -> None:
    if kind is TRAINING:
        raise Killed
    WRITE_ALL(self, kind, records)


@pytest.mark.usefixtures("fakes")
def test_a_changed_log_belongs_to_another_run(
    configured: Callable[..., Any], tmp_path: Path
) -> None:
    run(configured(tmp_path / "run"))
    write_seeds(tmp_path / "logs" / "dpo", "dpo", (0,), steps=65)
    with pytest.raises(RunFolderError, match="They differ in: training logs"):
        run(configured(tmp_path / "run"))


@pytest.mark.usefixtures("fakes")
def test_lost_rows_are_noticed(configured: Callable[..., Any], tmp_path: Path) -> None:
    file = run(configured(tmp_path / "run")) / TRAINING.file
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(RunFolderError, match="tbpo, seed 0: 1 of 64 logged steps are gone"):
        compare_run(tmp_path / "run")


@pytest.mark.usefixtures("fakes")
def test_a_bad_log_stops_the_run_before_anything_starts(
    configured: Callable[..., Any], tmp_path: Path
) -> None:
    write_log(tmp_path / "logs/dpo/seeds/seed-1/train_log.jsonl", [GOOD, "{"])
    with pytest.raises(DataError, match=r"seed-1/train_log\.jsonl:2: not valid JSON"):
        run(configured(tmp_path / "run"))
    assert FakeEngine.started == 0
    assert not (tmp_path / "run").exists()


def test_runs_without_training_logs_keep_their_key_and_old_records_read(
    given: Path, configured: Callable[..., Any], tmp_path: Path
) -> None:
    plain = make_plan(run_config(given, tmp_path)).manifest
    same = make_plan(configured(tmp_path, suites=[str(given / "own.yaml")])).manifest
    assert same.run_key == plain.run_key
    assert make_plan(configured(tmp_path)).manifest.run_key != plain.run_key
    old = plain.model_dump(mode="json", exclude={"training"})
    assert RunManifest.model_validate(old) == plain
    sample = Path(__file__).parents[1] / "reports" / "sample" / "comparison.json"
    values = json.loads(sample.read_text(encoding="utf-8"))
    values.pop("training", None)
    assert Comparison.model_validate(values).training is None
