"""AlpacaEval's own package with our judge as its annotator, against a server on localhost."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_records import Tbpo
from judge_stand_in import GOOD, JudgeStandIn, Slip, judge_stand_in, slips
from openai_stand_in import seeded
from recorded_files import write_json
from test_annotating import KEY, annotated, files, preferences, row, words

from harness.annotating import Via
from harness.judges.llm import BudgetError
from harness.leaderboard import LengthControl

pytest.importorskip("alpaca_eval")

RATES = ("win_rate", "standard_error", "discrete_win_rate")
COUNTS = ("n_wins", "n_wins_base", "n_draws", "n_total")


@pytest.fixture(autouse=True)
def localhost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def server() -> Iterator[JudgeStandIn]:
    with judge_stand_in() as state:
        yield state


def official(server: JudgeStandIn, *paths: Path, **changes: Any) -> Any:
    return annotated(server.url, *paths, via=Via.ALPACA_EVAL, **changes)


def hard(folder: Path, count: int = 40) -> tuple[Path, Path]:
    """Write answers whose texts try to break the package's templates, parsers and data frames."""
    odd = ("{output_1} {example_id}", "```json\n[1]\n```", "nan", "", "  spaced\r\n", "null", "Ünï")
    ours = [row(i, f"{odd[i % 7]}{GOOD} {i}", "dpo") for i in range(count)]
    theirs = [row(i, f"POOR {odd[i * 3 % 7]} {i}", "base", dataset="d") for i in range(count)]
    ours[3]["output"] = theirs[3]["output"]
    ours[4]["instruction"] = theirs[4]["instruction"] = "{output_2} {example_id}?"
    folder.mkdir(exist_ok=True)
    return write_json(folder / "a.json", ours), write_json(folder / "b.json", theirs[::-1])


def test_the_same_rows_as_without_the_package(server: JudgeStandIn, tmp_path: Path) -> None:
    server.told = lambda label: {label: -0.2, "AB".replace(label, ""): -1.9}
    paths = hard(tmp_path)
    through = official(server, *paths)
    posts = server.posts
    own = annotated(server.url, *paths)
    assert through.annotations == own.annotations
    assert (through.equal, through.decided) == (own.equal, own.decided) == (1, 40)
    assert posts == server.posts == 2 * 39
    assert through.official is not None
    assert through.official.version.startswith("0.6")


@pytest.mark.parametrize("broken", [0.0, 0.5])
def test_both_compute_the_same_rates(
    server: JudgeStandIn, tmp_path: Path, tbpo: Tbpo, broken: float
) -> None:
    server.slip = slips(3, broken)
    server.told = lambda label: {label: -0.4, "AB".replace(label, ""): -1.1}
    output = tmp_path / "annotations.json"
    given = words(server, hard(tmp_path), output)
    given[3] = f"llm={server.url},retries=0"
    code, out, _ = tbpo(*given, "--via", "alpaca-eval", "--json")
    theirs = json.loads(out)["official"]
    assert code == 0

    control = LengthControl.NONE.value
    _, out, _ = tbpo("winrate", output, "--length-control", control, "--json", "--resamples", "50")
    (ours,) = json.loads(out)
    for name in RATES:
        assert ours[name] == pytest.approx(theirs[name], rel=0, abs=1e-9)
    assert [ours[name] for name in COUNTS] == [theirs[name] for name in COUNTS]
    assert ours["n_missing"] == 40 - theirs["n_total"]
    assert (ours["n_missing"] > 0) == (broken > 0)
    assert ours["avg_length"] == theirs["avg_length"]


def test_without_a_verdict_there_is_no_rate(server: JudgeStandIn, tmp_path: Path) -> None:
    server.slip = lambda: Slip.EMPTY
    found = official(server, *files(tmp_path, 4), spec={"retries": 0})
    assert preferences(found) == [None] * 4
    assert (found.official.win_rate, found.official.n_total) == (None, 0)


def test_the_package_reads_what_is_written(server: JudgeStandIn, tmp_path: Path) -> None:
    import pandas as pd
    from alpaca_eval.metrics import get_winrate

    from harness.annotating import write_annotations

    server.slip = slips(5, 0.3)
    found = official(server, *files(tmp_path, 30), spec={"retries": 0})
    write_annotations(tmp_path / "annotations.json", found)
    again = get_winrate(pd.read_json(tmp_path / "annotations.json"))
    assert again["win_rate"] == pytest.approx(found.official.win_rate, rel=0, abs=1e-9)
    assert again["n_total"] == found.official.n_total == found.decided < 30


def test_a_failing_server_loses_and_doubles_nothing(server: JudgeStandIn, tmp_path: Path) -> None:
    server.plan = seeded(1, 0.3)
    patient = {"attempts": 30, "timeout_s": 1.0, "backoff_s": 0.001}
    found = official(server, *files(tmp_path, 12), endpoint=patient)
    assert preferences(found) == [2.0, 2.0, 1.0] * 4


def test_no_judge_gets_anothers_verdict(server: JudgeStandIn, tmp_path: Path) -> None:
    paths = files(tmp_path, 3)
    assert preferences(official(server, *paths)) == [2.0, 2.0, 1.0]
    server.choose = lambda _: "B"
    assert preferences(official(server, *paths)) == [2.0, 2.0, 1.0]
    assert server.posts == 6
    assert preferences(official(server, *paths, spec={"seed": 1})) == [1.5, 1.5, 1.5]
    assert server.posts == 12


def test_a_spent_budget_stops_the_package_and_the_next_run_goes_on(
    server: JudgeStandIn, tmp_path: Path
) -> None:
    paths = files(tmp_path)
    with pytest.raises(BudgetError, match="run the same command"):
        official(server, *paths, budget={"requests": 5})
    assert official(server, *paths).decided == 6
    assert server.posts == 12


def test_the_command_says_whose_figures_it_prints(
    server: JudgeStandIn, tmp_path: Path, tbpo: Tbpo
) -> None:
    given = words(server, files(tmp_path), tmp_path / "annotations.json")
    code, out, err = tbpo(*given, "--via", "alpaca-eval")
    assert code == 0
    assert "alpaca-eval 0.6.6: win rate 66.67 +- 21.08, wins 4, draws 0, losses 2, n 6" in out
    assert "Traceback" not in err


def test_the_process_is_left_as_it_was(
    server: JudgeStandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.key, server.echo, server.slip = KEY, f" {KEY}", lambda: Slip.GARBAGE
    level, environment = logging.getLogger().level, dict(os.environ)
    found = official(server, *files(tmp_path, 3), spec={"api_key_env": "JUDGE_KEY"})
    assert logging.getLogger().level == level
    assert dict(os.environ) == environment
    texts = [found.model_dump_json(), caplog.text]
    texts += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in text for text in texts)
