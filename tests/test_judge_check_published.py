"""``tbpo judge check`` on published preference data, with judges whose agreement can be counted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_records import Tbpo, refused
from judge_stand_in import (
    JudgeStandIn,
    judge_stand_in,
    prefers_first,
    prefers_longer,
)
from metric_records import SHARED

from harness.judge_check import Check, check_judges
from harness.types import JudgeSpec

pytestmark = pytest.mark.slow

PEOPLE, MODEL = "people", "a model"


class Data(NamedTuple):
    """A published file, whose prompt its pairs are for, who labelled it, and how much is asked."""

    path: Path
    suite: str
    labelled_by: str
    limit: int | None = None

    @property
    def agreement(self) -> str:
        return f"agreement with {self.labelled_by}"


FILES = [
    Data(SHARED / "preference_pairs" / "llmbar.jsonl", "instruction_following", PEOPLE),
    Data(SHARED / "preference_pairs" / "pandalm.jsonl", "instruction_following", PEOPLE),
    Data(SHARED / "hh_rlhf" / "helpful.jsonl", "hh/helpful", PEOPLE),
    Data(SHARED / "hh_rlhf" / "harmless.jsonl", "hh/harmless", PEOPLE),
    Data(SHARED / "hh_rlhf_train" / "harmless.jsonl.gz", "hh/harmless", PEOPLE, 100),
    Data(SHARED / "tldr" / "judged_pairs.jsonl", "summarization", MODEL),
]
UNJUDGED = SHARED / "tldr" / "unjudged.jsonl"

every_file = pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            data,
            id=f"{data.path.parent.name}-{data.path.name.split('.')[0]}",
            marks=pytest.mark.skipif(not data.path.is_file(), reason=f"no {data.path}"),
        )
        for data in FILES
    ],
)


@pytest.fixture
def server() -> Iterator[JudgeStandIn]:
    with judge_stand_in() as state:
        yield state


def checked(data: Data, server: JudgeStandIn) -> Check:
    return check_judges(
        [JudgeSpec(name="llm", source=server.url)],
        [data.path],
        data.suite,
        limit=data.limit,
        engine={},
        endpoint={"timeout_s": 60.0},
        budget={},
        prices=None,
    )


# The same counted from the raw files alone.


def raw(data: Data) -> list[dict[str, Any]]:
    """Return the rows whose answers are texts; some of PandaLM's were written as ``true``."""
    content = data.path.read_bytes()
    text = (gzip.decompress(content) if data.path.suffix == ".gz" else content).decode()
    rows = [json.loads(line) for line in text.split("\n") if line]
    return [row for row in rows if all(isinstance(x, str) for x in answers(row))][: data.limit]


def answers(row: dict[str, Any]) -> tuple[Any, Any]:
    """Return the answer that is labelled better, and the other one."""
    if "preferred" in row:
        both = row["model_summary"], row["reference_summary"]
        return both if row["preferred"] == "ours" else both[::-1]
    if "prompt" in row:
        return row["chosen"], row["rejected"]
    return tuple(row[key].rpartition("\n\nAssistant:")[2] for key in ("chosen", "rejected"))


def longer_is_better(row: dict[str, Any]) -> bool:
    better, worse = ((len(text.strip()), text.strip()) for text in answers(row))
    return better > worse


def prompt(row: dict[str, Any]) -> str:
    return str(row.get("prompt") or row["chosen"].rpartition("\n\nAssistant:")[0])


@every_file
def test_a_judge_of_length_agrees_as_often_as_the_longer_answer_is_labelled_better(
    data: Data, server: JudgeStandIn
) -> None:
    server.choose = prefers_longer
    rows = raw(data)
    alike = sum(map(longer_is_better, rows))
    check = checked(data, server)
    (found,) = check.judges
    agreement = found.figures[data.agreement]

    assert (check.pairs, found.alike, found.half, found.opposed) == (
        len(rows),
        alike,
        0,
        len(rows) - alike,
    )
    assert agreement.value == alike / len(rows)
    assert (agreement.n, agreement.missing) == (len(rows), 0)
    assert agreement.clusters == len({prompt(row) for row in rows})
    assert agreement.low is not None
    assert agreement.high is not None
    assert agreement.low < agreement.value < agreement.high
    assert found.figures["flip rate"].value == 0.0
    assert found.figures["consistency"].value == 1.0
    assert found.figures["length preference"].value == 1.0
    assert found.figures["invalid"].value == 0.0


@every_file
def test_a_judge_of_places_agrees_on_half_and_always_flips(
    data: Data, server: JudgeStandIn
) -> None:
    server.choose = prefers_first
    data = data._replace(limit=60)
    (found,) = checked(data, server).judges
    assert (found.alike, found.half, found.opposed) == (0, 60, 0)
    assert found.figures[data.agreement].value == 0.5
    assert found.figures["flip rate"].value == 1.0
    assert found.figures["position preference"].value == 1.0


@every_file
def test_every_turn_before_the_answers_is_shown(data: Data, server: JudgeStandIn) -> None:
    server.choose = prefers_longer
    data = data._replace(limit=20)
    checked(data, server)
    asked = [body["messages"][-1]["content"] for body in server.bodies]
    assert len(asked) == 40
    several = 0
    for row in raw(data):
        turns = [prompt(row)] if "prompt" in row else spoken(row)
        several += len(turns) > 1
        shown = [text for text in asked if all(turn in text for turn in turns)]
        assert all(any(answer.strip() in text for text in shown) for answer in answers(row))
    assert several > 0 or data.suite != "hh/harmless"


def spoken(row: dict[str, Any]) -> list[str]:
    turns = prompt(row).replace("\n\nAssistant:", "\n\nHuman:").split("\n\nHuman:")
    return [turn.strip() for turn in turns if turn.strip()]


@every_file
def test_command(data: Data, server: JudgeStandIn, tbpo: Tbpo) -> None:
    server.choose = prefers_longer
    limit = 30
    rows = raw(data._replace(limit=limit))
    words: list[str | Path] = ["judge", "check", "--judge", f"longer={server.url}"]
    words += ["--pairs", data.path, "--suite", data.suite, "--limit", str(limit)]
    code, out, _ = tbpo(*words)
    assert code == 0
    assert out.startswith(f"30 pairs of {data.path.name}, first 30 pairs, shown in both orders\n")
    share = sum(map(longer_is_better, rows)) / limit
    assert f"  {data.agreement:34} {share:.3f} [" in out
    assert ("decided by a model, not by people" in out) == (data.labelled_by == MODEL)

    code, out, _ = tbpo(*words, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["deciders"] == data.labelled_by
    assert found["judges"][0]["figures"][data.agreement]["value"] == share


@pytest.mark.skipif(not FILES[1].path.is_file(), reason=f"no {FILES[1].path}")
def test_rows_whose_answer_is_no_text_are_counted(server: JudgeStandIn, tbpo: Tbpo) -> None:
    judge = f"llm={server.url}"
    server.choose = prefers_longer
    code, out, _ = tbpo(
        "judge", "check", "--judge", judge, "--pairs", FILES[1].path, "--limit", "1"
    )
    assert code == 0
    assert "left out: answer that is a value and no text: 6 (first: pandalm.jsonl:416)" in out


@pytest.mark.skipif(not UNJUDGED.is_file(), reason=f"no {UNJUDGED}")
def test_summaries_without_a_verdict_are_refused_by_line(server: JudgeStandIn, tbpo: Tbpo) -> None:
    found = tbpo("judge", "check", "--judge", f"llm={server.url}", "--pairs", UNJUDGED)
    refused(found, "unjudged.jsonl:1: 'preferred' must be 'ours'")
    assert server.posts == 0
