"""``tbpo winrate``: files in, a table, a CSV or JSON out, and nothing passed over in silence."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_records import Tbpo, refused
from judgment_records import alpaca_row, annotation, arena, pair, single
from recorded_files import write_csv, write_json, write_jsonl

QUICK = ("--resamples", "50", "--length-control", "none")


def files(folder: Path) -> tuple[Path, Path]:
    rows = [annotation(i, 1 + (i % 3) / 2) for i in range(9)]
    better = [annotation(i, 2.0, generator_2="sft") for i in range(9)]
    return write_json(folder / "dpo.json", rows), write_json(folder / "sft.json", better)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_models_of_several_files_in_one_table_and_one_csv(tmp_path: Path, tbpo: Tbpo) -> None:
    output = tmp_path / "new" / "leaderboard.csv"
    code, out, _ = tbpo("winrate", *files(tmp_path), *QUICK, "--output", output)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "judge j, against base"
    assert [line.split()[0] for line in lines[2:4]] == ["sft", "dpo"]
    assert "50.00 [" in lines[3]
    assert "3/3/3" in lines[3]
    assert any(
        line.startswith("  win rate: wilson with the cluster-robust (CR3)") for line in lines
    )

    first, second = rows_of(output)
    assert (first["model"], first["win_rate"], first["n_wins"]) == ("sft", "100.0", "9")
    assert float(second["win_rate"]) == 50.0
    assert list(first)[:12] == [
        "model",
        "win_rate",
        "standard_error",
        "n_wins",
        "n_wins_base",
        "n_draws",
        "n_total",
        "discrete_win_rate",
        "mode",
        "avg_length",
        "length_controlled_winrate",
        "lc_standard_error",
    ]
    assert first["length_controlled_winrate"] == ""


def test_json_is_nothing_but_json_and_repeats(tmp_path: Path, tbpo: Tbpo) -> None:
    quick = ("--resamples", "50", "--length-control", "paper")
    words = ("winrate", *files(tmp_path), *quick, "--json")
    found = [json.loads(tbpo(*words, "--seed", seed)[1]) for seed in ("0", "0", "1")]
    assert found[0] == found[1]
    assert [row["model"] for row in found[0]] == ["sft", "dpo"]
    assert found[0][1]["win_rate_low"] == found[2][1]["win_rate_low"]
    assert found[0][1]["lc_low"] != found[2][1]["lc_low"]


def test_a_name_before_a_file(tmp_path: Path, tbpo: Tbpo) -> None:
    path, _ = files(tmp_path)
    assert json.loads(tbpo("winrate", f"mine={path}", *QUICK, "--json")[1])[0]["model"] == "mine"
    odd = path.rename(tmp_path / "a=b.json")
    assert json.loads(tbpo("winrate", odd, *QUICK, "--json")[1])[0]["model"] == "dpo"
    for word in (f"={path}", "mine="):
        refused(tbpo("winrate", word), "expected FILE or NAME=FILE")


def test_pairs_are_turned_towards_the_baseline(tmp_path: Path, tbpo: Tbpo) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [pair(i, "model_1", "tie") for i in range(3)])
    row = json.loads(tbpo("winrate", path, *QUICK, "--json", "--baseline", "dpo")[1])[0]
    assert (row["model"], row["baseline"], row["win_rate"]) == ("base", "dpo", 25.0)
    refused(tbpo("winrate", path, "--baseline", "x"), "unknown baseline 'x'")


def test_strong_wins_are_switched(tmp_path: Path, tbpo: Tbpo) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [arena(0, "B>>A", "B>A"), arena(1, "A=B", "A=B")])
    rates = [
        json.loads(tbpo("winrate", path, *QUICK, "--json", *more)[1])[0]["win_rate"]
        for more in ((), ("--strong-weight", "1"))
    ]
    assert rates == [pytest.approx(100 * 4 / 6), 50.0]


def test_rates_at_equal_length(tmp_path: Path, tbpo: Tbpo) -> None:
    rows = [alpaca_row(i, 1 + (i % 3) / 2) for i in range(12)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    difficulty = [{"index": i, "instruction_difficulty": (i % 5) - 2.0} for i in range(12)]
    given = write_csv(tmp_path / "d.csv", difficulty)
    for form in ("alpaca-eval", "paper"):
        words = ("--length-control", form, "--difficulty", given, "--resamples", "20")
        code, out, _ = tbpo("winrate", path, *words)
        assert code == 0, out
        row = json.loads(tbpo("winrate", path, *words, "--json")[1])[0]
        assert row["lc_low"] <= row["length_controlled_winrate"] <= row["lc_high"]
        assert row["lc_method"] in out


def test_a_rate_that_alpaca_eval_would_not_publish_is_pointed_out(
    tmp_path: Path, tbpo: Tbpo
) -> None:
    rows = [alpaca_row(i, 1 + (i % 3) / 2) for i in range(12)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    items = [{"index": i, "instruction_difficulty": (i % 5) - 2.0} for i in range(12)]
    difficulty = write_csv(tmp_path / "d.csv", items)
    extra = {"std_delta_len": 2.0, "instruction_difficulty": 0.5, "preference_01": 0.25}
    regulariser = write_csv(tmp_path / "r.csv", [extra])
    words = ("winrate", path, "--length-control", "alpaca-eval", "--resamples", "5", "--json")
    note = "note: the rate at equal length is not AlpacaEval's published one: it is "
    for more, said in (
        ((), "without item difficulty and without regulariser. "),
        (("--difficulty", difficulty), "without regulariser. "),
        (("--regulariser", regulariser), "without item difficulty. "),
    ):
        code, out, err = tbpo(*words, *more)
        assert (code, len(json.loads(out))) == (0, 1)
        assert err == f"{note}{said}Give --difficulty and --regulariser for that.\n"
    whole = ("--difficulty", difficulty, "--regulariser", regulariser, "--lookup", "row")
    assert tbpo(*words, *whole)[2] == ""
    # Without lengths there is no such rate to speak of.
    other = write_jsonl(tmp_path / "a.jsonl", [arena(0), arena(1)])
    assert tbpo("winrate", other, "--length-control", "alpaca-eval")[2] == ""


def test_differences_of_every_two_models(tmp_path: Path, tbpo: Tbpo) -> None:
    paths, output = files(tmp_path), tmp_path / "new" / "differences.csv"
    plain = tbpo("winrate", *paths, *QUICK)
    assert tbpo("winrate", *paths, *QUICK, "--differences", output) == plain
    (row,) = rows_of(output)
    assert list(row) == [
        "first",
        "second",
        "baseline",
        "judge",
        "difference",
        "low",
        "high",
        "standard_error",
        "p_value",
        "holm",
        "sign_p_value",
        "n_prompts",
        "n_missing",
        "level",
        "method",
    ]
    assert (row["first"], row["second"], row["difference"]) == ("sft", "dpo", "50.0")
    assert (row["baseline"], row["judge"], row["n_prompts"]) == ("base", "j", "9")
    assert row["holm"] == row["p_value"]
    # Six prompts of nine differ, all one way.
    assert float(row["sign_p_value"]) == pytest.approx(2 / 2**6)


def test_differences_that_cannot_be_are_refused(tmp_path: Path, tbpo: Tbpo) -> None:
    paths, output = files(tmp_path), tmp_path / "d.csv"
    alone = ("winrate", paths[0], *QUICK, "--differences", output)
    rates = tmp_path / "rates.csv"
    refused(tbpo(*alone, "--output", rates), "no two models were judged by the same judge")
    assert not output.exists()
    assert not rates.exists()
    both = ("winrate", *paths, *QUICK, "--differences", output)
    refused(tbpo(*both, "--output", output), "--output and --differences both name")
    (tmp_path / "file").touch()
    refused(tbpo(*both[:-1], tmp_path / "file" / "d"), "--differences")


def test_the_tally_says_that_verdicts_are_counted(tmp_path: Path, tbpo: Tbpo) -> None:
    rows = [pair(i, "model_1", "tie") for i in range(3)]
    _, out, _ = tbpo("winrate", write_jsonl(tmp_path / "p.jsonl", rows), *QUICK)
    titles, cells = out.splitlines()[1:3]
    assert "verdicts W/D/L  prompts  missing verdicts" in titles
    assert cells.split()[-3:] == ["3/3/0", "3", "0"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--lookup", "row"], "--lookup row has no use without --difficulty"),
        (["--difficulty", "D"], "--difficulty has no use with --length-control none"),
        (["--regulariser", "D"], "--regulariser belongs to --length-control alpaca-eval"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(
    tmp_path: Path, tbpo: Tbpo, words: list[str], problem: str
) -> None:
    refused(tbpo("winrate", files(tmp_path)[0], *QUICK, *words), problem)


def test_scores_of_single_answers_give_means(tmp_path: Path, tbpo: Tbpo) -> None:
    rows: list[dict[str, Any]] = [single(i, 6 + i, t) for i in range(3) for t in (1, 2)]
    path = write_jsonl(tmp_path / "s.jsonl", [*rows, single(9, -1)])
    output = tmp_path / "scores.csv"
    code, out, _ = tbpo("winrate", path, "--output", output)
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["dpo", "gpt-4", "7.00"]
    (row,) = rows_of(output)
    assert (row["turn_1"], row["turn_2"], row["average"]) == ("7.0", "7.0", "7.0")
    assert (row["n_judgments"], row["n_unparsed"]) == ("7", "1")
    assert json.loads(tbpo("winrate", path, "--json")[1])[0]["turn_1"] == 7.0

    other = write_jsonl(tmp_path / "p.jsonl", [pair()])
    refused(tbpo("winrate", other, path), "s.jsonl holds scores of single answers")
    for option in ("--baseline", "--difficulty", "--regulariser", "--differences"):
        refused(tbpo("winrate", path, option, "x"), f"{option} belongs to verdicts on pairs")


def test_what_cannot_be_used_is_refused(tmp_path: Path, tbpo: Tbpo) -> None:
    path, _ = files(tmp_path)
    refused(tbpo("winrate"), "Missing argument")
    refused(tbpo("winrate", tmp_path / "gone"), "gone cannot be read")
    refused(tbpo("winrate", path, path), "a second verdict of 'j' on 'dpo'")
    refused(tbpo("winrate", write_jsonl(tmp_path / "x", [{"a": 1}])), "no known form")
    (tmp_path / "file").touch()
    refused(tbpo("winrate", path, *QUICK, "--output", tmp_path / "file" / "o"), "cannot be written")


def test_no_model_and_no_engine_is_imported(tmp_path: Path) -> None:
    words = ["winrate", str(files(tmp_path)[0]), *QUICK]
    code = (
        "import sys\n"
        "from harness.cli import main\n"
        f"sys.argv = ['tbpo', *{words}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'vllm', 'pandas') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
