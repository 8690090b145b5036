"""Divergence from the base in a run: there for every answer, and after a kill only the rest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
from fake_engine import FakeReference, Killed, fraction
from suite_records import EXAMPLES, NAMES, run_config, write_suite
from test_pipeline import contents, install_fakes

from harness.likelihoods import KL_KEYS
from harness.pipeline import run
from harness.plan import RunConfig
from harness.reading import compare_run
from harness.store import GENERATIONS, SCORES, read_run
from harness.types import Score

KL = KL_KEYS[0]


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fakes(monkeypatch)
    FakeReference.forget()


@pytest.fixture
def config(given: Path, tmp_path: Path) -> RunConfig:
    suite = write_suite(tmp_path, metrics=["length", "reference_kl"], primary=[KL], judges=[])
    return run_config(given, tmp_path / "run", suites=[str(suite)])


def divergences(output: Path) -> list[Score]:
    return [score for score in read_run(output).records(SCORES) if score.metric in KL_KEYS]


def test_every_first_sample_has_its_divergence(config: RunConfig) -> None:
    scores = divergences(run(config))
    assert Counter((s.checkpoint, s.metric) for s in scores) == {
        (name, key): EXAMPLES for name in NAMES for key in KL_KEYS
    }
    assert {s.sample for s in scores} == {0}
    assert {s.value for s in scores if s.checkpoint == "base"} == {0.0}
    assert all(s.value == expected(config.output, s) for s in scores if s.metric == KL)
    assert compare_run(config.output).gaps == ()


def expected(output: Path, score: Score) -> float:
    """Return the mean of what the stand-in says at each of the first sample's tokens."""
    folder = read_run(output)
    weights = {c.spec.name: c.weights_sha256 for c in folder.manifest.checkpoints}
    own, base = weights[score.checkpoint], weights["base"]
    (answer,) = [
        g
        for g in folder.records(GENERATIONS)
        if (g.checkpoint, g.example_id, g.sample) == (score.checkpoint, score.example_id, 0)
    ]
    return 0.0 if own == base else fmean(fraction(own, base, i) for i in answer.token_ids or ())


def test_two_models_are_held_at_most_and_all_are_given_back(config: RunConfig) -> None:
    run(config)
    assert Counter(FakeReference.loads) == {"base": 2, "dpo": 2, "tbpo": 2}
    assert (FakeReference.most, FakeReference.held) == (2, 0)


@pytest.mark.parametrize("after", [0, 3, EXAMPLES, EXAMPLES + 2])
def test_run_stopped_in_a_divergence_computes_what_is_missing(
    config: RunConfig, tmp_path: Path, after: int
) -> None:
    whole = contents(run(config.model_copy(update={"output": tmp_path / "whole"})))
    FakeReference.forget()
    FakeReference.fail_after = after
    with pytest.raises(Killed):
        run(config)
    assert FakeReference.held == 0
    kept = {s.checkpoint for s in divergences(config.output)}
    FakeReference.forget()
    run(config)
    assert kept == {"base", "dpo"} if after >= EXAMPLES else kept == {"base"}
    assert {name for name, _ in FakeReference.read} == set(NAMES) - kept
    assert contents(config.output) == whole


def test_one_lost_score_is_one_answer_read_again(config: RunConfig, tmp_path: Path) -> None:
    whole = contents(run(config.model_copy(update={"output": tmp_path / "whole"})))
    FakeReference.forget()
    FakeReference.fail_after = 2 * EXAMPLES - 1
    with pytest.raises(Killed):
        run(config)
    file = config.output / SCORES.file
    file.write_bytes(file.read_bytes()[:-9])
    FakeReference.forget()
    run(config)
    assert Counter(name for name, _ in FakeReference.read) == {"dpo": 1, "tbpo": EXAMPLES}
    assert contents(config.output) == whole
