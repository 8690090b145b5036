"""``tbpo plan``: requests, tokens, time, cost and detectable differences before a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_records import Tbpo, refused
from form_runs import fake_weights
from judge_stand_in import JudgeStandIn, judge_stand_in
from suite_records import EXAMPLES, NAMES, SAMPLES, run_config

from harness.cli_plan import _found, _points
from harness.groups import speed_of
from harness.pipeline import run
from harness.plan import make_plan
from harness.planning import forecast
from harness.speeds import remember_speed, speed
from harness.stats.power import Planned, WinRateDesign, minimum_detectable_win_rate
from harness.store import GENERATIONS, read_run
from harness.types import JudgeSpec

PRICES = """
date: 2026-01-01
note: test
currency: USD
per_tokens: 1000
models:
  - {pattern: "*", input: 0.001, output: 0.002}
"""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_weights(monkeypatch)


@pytest.fixture
def server() -> Iterator[JudgeStandIn]:
    with judge_stand_in() as state:
        yield state


def test_counts_are_those_of_the_run(given: Path, tmp_path: Path) -> None:
    config = run_config(given, tmp_path / "run")
    (suite,) = forecast(config).suites
    run(config)
    made = read_run(tmp_path / "run").records(GENERATIONS)
    assert suite.requests == len(made) == EXAMPLES * SAMPLES * len(NAMES)
    assert suite.answer_tokens == suite.requests * 16
    assert suite.prompt_tokens is not None
    assert suite.prompt_tokens > suite.requests
    assert suite.win_rate == minimum_detectable_win_rate(WinRateDesign(prompts=EXAMPLES))


def test_nothing_is_computed_and_no_judge_is_asked(
    given: Path, tmp_path: Path, server: JudgeStandIn
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES)
    judge = JudgeSpec(name="llm", source=server.url, suites=("own",))
    found = forecast(run_config(given, tmp_path / "run", judges=[judge], prices=prices))
    assert server.posts == 0
    assert not (tmp_path / "run").exists()
    (asked,) = found.judges
    assert asked.pairs == EXAMPLES * 6
    assert asked.requests == 2 * asked.pairs
    assert asked.usd == pytest.approx(asked.input_tokens * 1e-6 + asked.output_tokens * 2e-6)
    assert found.usd == asked.usd


def test_time_is_known_once_it_was_measured(given: Path, tmp_path: Path) -> None:
    config = run_config(given, tmp_path / "run")
    (before,) = forecast(config).engines
    assert (before.tokens_per_second, before.seconds, forecast(config).seconds) == (None,) * 3
    (group,) = make_plan(config).groups
    remember_speed(1000, 10.0, **speed_of(group, group.checkpoints[0]))
    (after,) = forecast(config).engines
    assert after.tokens_per_second == 100.0
    assert after.seconds == after.answer_tokens / 100.0


def test_speeds_are_kept_apart_and_short_work_says_nothing() -> None:
    remember_speed(100, 2.0, engine="a")
    remember_speed(100, 0.5, engine="b")
    remember_speed(300, 2.0, engine="a")
    assert (speed(engine="a"), speed(engine="b")) == (150.0, None)


def test_command_prints_and_refuses_as_a_run_does(
    given: Path, tmp_path: Path, server: JudgeStandIn, tbpo: Tbpo
) -> None:
    words = ["plan", "--checkpoint", f"base={given / 'base'}", "--suite", given / "own.yaml"]
    judge = f"llm={server.url},suites=own"
    code, out, _ = tbpo(*words, "--judge", judge)
    assert code == 0
    assert f"own: {EXAMPLES} prompts x {SAMPLES}, {EXAMPLES * SAMPLES} answers" in out
    assert "no price known" in out
    assert "cost:" not in out
    code, out, _ = tbpo(*words, "--judge", judge, "--json")
    assert json.loads(out)["judges"][0]["pairs"] == EXAMPLES
    refused(tbpo("plan", "--checkpoint", "base=/nowhere", "--suite", "mini"), "/nowhere")


def test_too_few_prompts_promise_nothing(given: Path, tbpo: Tbpo) -> None:
    words = ["plan", "--checkpoint", f"base={given / 'base'}", "--suite", given / "own.yaml"]
    code, out, _ = tbpo(*words, "--limit", "5")
    assert code == 0
    said = "too few prompts to tell a win rate from 50 %, or two shares apart, four times in five"
    assert f"    {said}\n" in out
    (suite,) = json.loads(tbpo(*words, "--limit", "5", "--json")[1])["suites"]
    assert (suite["win_rate"]["difference"], suite["difference"]["difference"]) == (None, None)
    # Seven prompts find a difference that can occur, and still no win rate.
    out = tbpo(*words)[1]
    said = "finds two shares 90.0 points apart four times in five; too few prompts to tell a win"
    assert f"    {said} rate from 50 %\n" in out


def test_what_a_suite_finds_is_said_in_points() -> None:
    planned = Planned(
        difference=0.125, power=0.8, alpha=0.05, prompts=9, standard_error=1.0, design_effect=1.0
    )
    points = _points(planned)
    distance, apart = "a win rate 12.5 points from 50 %", "two shares 12.5 points apart"
    assert _found(points, points) == f"finds {distance}, or {apart}, four times in five"
    assert _found(points, _points(None)) == (
        f"finds {distance} four times in five; too few prompts to tell two shares apart"
    )


def test_a_cost_says_which_judges_it_leaves_out(
    given: Path, tmp_path: Path, server: JudgeStandIn, tbpo: Tbpo
) -> None:
    prices = tmp_path / "prices.yaml"
    words = ["plan", "--suite", given / "own.yaml", "--prices", prices]
    for name in ("base", "dpo"):
        words += ["--checkpoint", f"{name}={given / name}"]
    server.models = [server.models[0] | {"id": f"{name}-model"} for name in ("one", "two")]
    for name in ("one", "two"):
        words += ["--judge", f"{name}={server.url},suites=own,model={name}-model"]
    found = {}
    for pattern in ("*", "one*"):
        prices.write_text(PRICES.replace("*", pattern))
        code, found[pattern], err = tbpo(*words)
        assert code == 0, err
    last = {pattern: out.splitlines()[-1] for pattern, out in found.items()}
    assert last["*"].startswith("cost: at most about 0.")
    assert last["*"].endswith(" USD, retries aside")
    assert last["one*"].startswith("cost: at most about 0.")
    assert last["one*"].endswith(" USD, retries aside, and on top what two costs: no price known")
    assert "no price known; time" not in found["*"]
    assert "no price known; time" in found["one*"]
