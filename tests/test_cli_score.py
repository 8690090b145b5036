"""``tbpo score`` and ``tbpo import``: recorded answers scored, and made a run, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_records import Tbpo, refused
from form_runs import forbid_models, run_words
from judgment_records import annotation, pair
from recorded_files import ANSWERS, QUESTIONS, alpaca_eval, both, plain, write_json, write_jsonl
from suite_records import EXAMPLES, SAMPLES, write_suite

from harness.judgments import open_judgments, read_judgments
from harness.reading import compare_run
from harness.scoring import NEEDS_MODEL, Rescored, checkpoint_name
from harness.store import JUDGMENTS, read_run
from harness.types import Comparison, Counts, Outcome, Shown


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_models(monkeypatch)


def answers(folder: Path, name: str = "a", *, samples: int = SAMPLES, short: int = 0) -> Path:
    rows = [
        {"id": f"e{i}", "prompt": f"Question {i}", "output": f"the cat {i} {name} {'x' * k}"}
        for i in range(EXAMPLES - short)
        for k in range(samples)
    ]
    return write_jsonl(folder / f"{name}.jsonl", rows)


def scored(tbpo: Tbpo, *words: str | Path) -> Rescored:
    code, out, err = tbpo("score", *words, "--json")
    assert code == 0, err
    return Rescored.model_validate_json(out)


# score


def test_a_suites_metrics_with_intervals_and_what_is_missing(tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_suite(tmp_path, metrics=["rouge", "length", "distinct", "self_bleu"])
    suite.write_text(suite.read_text().replace("- preference_accuracy", "- rouge_l"))
    words = (suite, "--outputs", answers(tmp_path, short=2))
    found = scored(tbpo, *words)
    asked = EXAMPLES * SAMPLES
    assert found.answers == Counts(expected=asked, present=asked - 2 * SAMPLES)
    by_key = {r.metric.key: r.estimate for r in found.metrics}
    characters = by_key["characters"]
    assert characters.value == pytest.approx(len("the cat 0 a ") + 2 / 3)
    assert (characters.n, characters.missing) == (asked - 6, 6)
    assert characters.low is not None
    assert by_key["rouge_l"].value == pytest.approx(0.8, abs=0.1)
    assert by_key["tokens"].value is None
    assert {"distinct_1", "self_bleu"} <= by_key.keys()
    assert any("nobody counted the answer's tokens" in line for line in found.lacking)
    assert any("6 of 21 answers not generated" in line for line in found.lacking)
    assert found.skipped == {}

    code, out, _ = tbpo("score", *words)
    assert code == 0
    assert out.splitlines()[0] == "a on own: 15 of 21 answers"
    assert f"{characters.value:.3f} [" in out


def test_the_figures_are_those_of_a_run(tmp_path: Path, tbpo: Tbpo) -> None:
    suite, path = write_suite(tmp_path), answers(tmp_path)
    found = scored(tbpo, suite, "--outputs", path)
    output = tmp_path / "run"
    assert tbpo(*run_words({"a": path}, output, suite))[0] == 0
    ran = {r.metric.key: r for r in compare_run(output).metrics}
    assert [r for r in found.metrics if r != ran[r.metric.key]] == []
    assert found.metrics


def test_what_needs_a_model_is_skipped_and_said(tmp_path: Path, tbpo: Tbpo) -> None:
    found = scored(tbpo, write_suite(tmp_path), "--outputs", answers(tmp_path))
    assert found.skipped == {"preference_accuracy": NEEDS_MODEL}
    assert "entropy" in {r.metric.key for r in found.metrics}
    assert any("entropy" in line for line in found.lacking)


def test_nothing_is_written(tmp_path: Path, tbpo: Tbpo, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, path = write_suite(tmp_path), answers(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    scored(tbpo, suite, "--outputs", path)
    assert list((tmp_path / "here").iterdir()) == []


def test_packaged_suites_and_the_files_own_prompts(tmp_path: Path, tbpo: Tbpo) -> None:
    path = write_json(tmp_path / "m.json", both(alpaca_eval))
    found = scored(tbpo, "outputs", "--outputs", path)
    assert (found.suite, found.model, found.answers.present) == ("outputs", "m", 2)
    rows = [{"id": "bike-brakes", "output": "x"}]
    refused(
        tbpo("score", "summarization", "--outputs", write_jsonl(tmp_path / "s.jsonl", rows)),
        "answers no prompt of suite summarization",
    )


def test_one_of_several_models_is_chosen(tmp_path: Path, tbpo: Tbpo) -> None:
    rows = [row | {"generator": name} for name in ("m", "n") for row in both(alpaca_eval)]
    path = write_json(tmp_path / "both.json", rows)
    assert scored(tbpo, "outputs", "--outputs", path, "--model", "n").model == "n"
    refused(tbpo("score", "outputs", "--outputs", path), "choose one with model=NAME")


def test_what_cannot_be_scored_is_refused(tmp_path: Path, tbpo: Tbpo) -> None:
    path = answers(tmp_path)
    refused(tbpo("score", "nothing", "--outputs", path), "unknown suite 'nothing'")
    refused(tbpo("score", "outputs", "--outputs", tmp_path / "gone"), "gone is not a file")
    refused(tbpo("score", "training_stability", "--outputs", path), "stands for 0 suites")


def test_a_files_name_becomes_a_checkpoints() -> None:
    names = ["results_x.jsonl.gz", "a b+c.json", "é.csv", "--.parquet", "m.v1.json"]
    assert [checkpoint_name(Path(n)) for n in names] == [
        "results_x",
        "a-b+c",
        "é",
        "outputs",
        "m.v1",
    ]


# import


def imported(tbpo: Tbpo, output: Path, *words: str | Path) -> Comparison:
    code, out, err = tbpo("import", *words, "--output", output)
    assert code == 0, err
    assert f"report: {output / 'report.html'}" in out
    return compare_run(output)


def models(folder: Path) -> list[str]:
    """Write outputs of two models to the same prompts; return them as words of the command."""
    return [f"{name}={write_json(folder / f'{name}.json', rows(name))}" for name in ("base", "dpo")]


def rows(name: str) -> list[dict[str, Any]]:
    more = "!" * len(name)
    return [
        {"instruction": q, "output": a + more, "generator": name}
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]


def judged(folder: Path, *preferences: float | None) -> Path:
    found = [
        annotation(i, preference, instruction=QUESTIONS[i])
        for i, preference in enumerate(preferences)
    ]
    return write_json(folder / "annotations.json", found)


def test_answers_become_a_run(tmp_path: Path, tbpo: Tbpo) -> None:
    path = write_json(tmp_path / "m.json", both(plain))
    comparison = imported(tbpo, tmp_path / "run", path)
    assert comparison.complete
    assert [c.spec.name for c in comparison.manifest.checkpoints] == ["m"]


def test_judgments_become_those_of_a_judge_named_after_the_annotator(
    tmp_path: Path, tbpo: Tbpo
) -> None:
    output = tmp_path / "run"
    given = (*models(tmp_path), "--judgments", judged(tmp_path, 1.75, 1.0))
    comparison = imported(tbpo, output, *given)
    assert comparison.complete
    records = read_run(output).records(JUDGMENTS)
    assert [(r.judge, r.candidate, r.baseline) for r in records] == [("j", "dpo", "base")] * 2
    assert {r.preference for r in records} == {0.75, 0.0}
    assert {r.length_difference for r in records} == {-1}
    rate = comparison.win_rates[0]
    assert (rate.wins, rate.losses, rate.estimate.value) == (1, 1, 0.5)
    (judge,) = comparison.manifest.judges
    assert (judge.name, judge.judges_reference) == ("j", False)
    assert "j" in (output / "report.md").read_text("utf-8")

    before = {path: path.read_bytes() for path in output.glob("*.json*")}
    assert imported(tbpo, output, *given) == comparison
    assert {path: path.read_bytes() for path in output.glob("*.json*")} == before
    other = judged(tmp_path, 2.0, 2.0)
    found = tbpo("import", *models(tmp_path), "--judgments", other, "--output", output)
    assert found[0] == 2
    assert "already has verdicts of a judge 'j' from elsewhere" in found[2]


def test_a_prompts_place_in_its_benchmark_is_kept(tmp_path: Path, tbpo: Tbpo) -> None:
    found = [
        annotation(i, 1.0 + i, instruction=QUESTIONS[i], index=place)
        for i, place in enumerate((7, 3))
    ]
    output = tmp_path / "run"
    given = write_json(tmp_path / "annotations.json", found)
    imported(tbpo, output, *models(tmp_path), "--judgments", given)
    read = read_judgments([open_judgments(output)])
    assert read.judged.item.tolist() == [7, 3]


def test_the_gate_reads_what_was_imported(tmp_path: Path, tbpo: Tbpo) -> None:
    output = tmp_path / "run"
    imported(tbpo, output, *models(tmp_path), "--judgments", judged(tmp_path, 2.0, 2.0))
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n- {suite: outputs, win_rate: j, margin: 0.5}\n")
    code, out, err = tbpo("gate", "dpo", "--baseline", "base", "--run", output, "--rules", rules)
    assert "win rate by j" in out, err
    assert code in (0, 3)


def test_an_unread_verdict_stays_a_gap(tmp_path: Path, tbpo: Tbpo) -> None:
    given = ("--judgments", judged(tmp_path, None, 2.0))
    comparison = imported(tbpo, tmp_path / "run", *models(tmp_path), *given)
    assert comparison.win_rates[0].invalid == 1
    assert any("1 of 2 verdicts missing" in gap for gap in comparison.gaps)


def test_both_orders_become_one_verdict_seen_from_the_later_checkpoint(
    tmp_path: Path, tbpo: Tbpo
) -> None:
    # model_1 of the file is the run's base.
    sides = {"model_1": "base", "model_2": "dpo"}
    winners = [("model_1", "model_2"), ("model_2", "tie")]
    found = [pair(i, *won, **sides, question_id=str(i)) for i, won in enumerate(winners)]
    path = write_jsonl(tmp_path / "pairs.jsonl", found)
    files = [write_json(tmp_path / f"{name}.json", both(plain)) for name in ("base", "dpo")]
    output = tmp_path / "run"
    imported(tbpo, output, *files, "--judgments", path)
    records = read_run(output).records(JUDGMENTS)
    assert [(r.candidate, r.preference, r.outcome) for r in records] == [
        ("dpo", 0.5, Outcome.TIE),
        ("dpo", 0.75, Outcome.TIE),
    ]
    # model_1's answer, the base's, was shown first in the first game.
    orders = [(o.shown, o.outcome) for o in records[0].orders]
    assert orders == [(Shown.BASELINE_FIRST, Outcome.LOSS), (Shown.CANDIDATE_FIRST, Outcome.WIN)]
    again = read_judgments([open_judgments(output)])
    assert again.judged.preference.tolist() == [0.0, 1.0, 1.0, 0.5]
    assert again.judged.order.tolist() == [-1, 1, -1, 1]


def test_judgments_that_do_not_belong_are_refused_or_counted(tmp_path: Path, tbpo: Tbpo) -> None:
    files, output = models(tmp_path), tmp_path / "run"

    def attempt(path: Path, *words: str) -> tuple[int, str, str]:
        return tbpo("import", *files, "--judgments", path, "--output", output, *words)

    code, _, err = attempt(write_json(tmp_path / "x.json", [annotation(0, generator_2="sft")]))
    assert (code, "'sft', which is not in the run (base, dpo)" in err) == (2, True)
    code, _, err = attempt(write_json(tmp_path / "y.json", [annotation(0)]))
    assert (code, "none of the judgments is about a prompt of the run" in err) == (2, True)
    assert read_run(output).records(JUDGMENTS) == []
    some = [annotation(0, instruction=QUESTIONS[0]), annotation(1)]
    code, out, _ = attempt(write_json(tmp_path / "z.json", some))
    assert (code, "1 verdicts are about prompts that the run does not have" in out) == (0, True)


def test_reference_answers_may_have_another_name(tmp_path: Path, tbpo: Tbpo) -> None:
    given = [row | {"reference": "Red."} for row in rows("dpo")]
    file = write_json(tmp_path / "dpo.json", given)
    output = tmp_path / "run"
    words = (file, "--judgments", judged(tmp_path, 2.0, 1.0), "--reference", "base")
    comparison = imported(tbpo, output, *words)
    by_j = [r for r in comparison.win_rates if r.judge == "j"]
    assert (by_j[0].candidate, by_j[0].baseline, by_j[0].wins) == ("dpo", "reference", 1)
    assert comparison.complete
    refused(tbpo("import", file, "--reference", "x", "--output", output), "give those too")


def test_words_that_are_no_file_are_refused(tmp_path: Path, tbpo: Tbpo) -> None:
    output = tmp_path / "run"
    path = write_json(tmp_path / "m.json", both(alpaca_eval))
    refused(tbpo("import", f"={path}", "--output", output), "expected FILE, NAME=FILE or")
    refused(tbpo("import", f"a b={path}", "--output", output), "checkpoints.0.name")
    assert json.loads((imported_manifest(tbpo, output, f"m={path},model=m")).read_text())
    assert (output / "manifest.json").is_file()


def imported_manifest(tbpo: Tbpo, output: Path, word: str) -> Path:
    imported(tbpo, output, word)
    return output / "manifest.json"
