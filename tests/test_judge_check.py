"""``tbpo judge check``: judges against human labels, measured on a server that judges as told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_records import Tbpo, refused
from judge_stand_in import (
    GOOD,
    POOR,
    JudgeStandIn,
    Slip,
    judge_stand_in,
    prefers_first,
    prefers_good,
    prefers_longer,
)
from openai_stand_in import Fault, always

from harness.errors import DataError, EngineError, InputError
from harness.judge_check import Check, check_judges
from harness.judges.llm.in_process import InProcess
from harness.judging import llm_judge
from harness.labelled import Deciders, read_labelled
from harness.training.data import Skips
from harness.types import JudgeSpec

ROWS = [
    {"prompt": f"Question {i // 2}", "chosen": f"{GOOD} {i}", "rejected": f"{POOR} {i} and more"}
    for i in range(12)
]
QUICK = {"attempts": 4, "timeout_s": 5.0, "backoff_s": 0.002}


@pytest.fixture
def server() -> Iterator[JudgeStandIn]:
    with judge_stand_in() as state:
        yield state


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return written(tmp_path / "labelled.jsonl", *ROWS)


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def summaries(preferred: object, **changes: Any) -> dict[str, Any]:
    row = {"prompt": "POST: a\n\nTL;DR:", "model_summary": GOOD, "reference_summary": POOR}
    return row | {"preferred": preferred} | changes


def checked(path: Path, *specs: JudgeSpec, **changes: Any) -> Check:
    options: dict[str, Any] = {
        "limit": None,
        "engine": {},
        "endpoint": QUICK,
        "budget": {},
        "prices": None,
    }
    return check_judges(specs, [path], "hh/helpful", **(options | changes))


def test_judge_that_decides_as_people_do(server: JudgeStandIn, pairs: Path) -> None:
    server.choose = prefers_good
    (found,) = checked(pairs, JudgeSpec(name="llm", source=server.url)).judges
    agreement = found.figures["agreement with people"]
    assert (found.alike, found.half, found.opposed) == (12, 0, 0)
    assert (agreement.value, agreement.n, agreement.clusters) == (1.0, 12, 6)
    assert agreement.low is not None
    assert agreement.low < 1.0
    assert found.figures["flip rate"].value == 0.0
    assert found.figures["length preference"].value == 0.0


def test_judge_of_positions_is_a_coin(server: JudgeStandIn, pairs: Path) -> None:
    server.choose = prefers_first
    (found,) = checked(pairs, JudgeSpec(name="llm", source=server.url)).judges
    assert (found.alike, found.half, found.opposed) == (0, 12, 0)
    assert found.figures["agreement with people"].value == 0.5
    assert found.figures["flip rate"].value == 1.0
    assert found.figures["position preference"].value == 1.0


def test_several_judges_are_held_against_each_other(server: JudgeStandIn, pairs: Path) -> None:
    specs = [JudgeSpec(name=n, source=server.url, seed=i) for i, n in enumerate("ab")]
    found = checked(pairs, *specs)
    assert list(found.between) == ["Krippendorff's alpha", "kappa of a and b"]
    assert found.between["kappa of a and b"].value == 1.0


def test_what_was_found_stands_beside_later_verdicts(server: JudgeStandIn, pairs: Path) -> None:
    spec = JudgeSpec(name="llm", source=server.url)
    before = llm_judge(spec, {}, {}).info
    assert before.agreement is None
    assert not before.by_rule
    checked(pairs, spec)
    after = llm_judge(spec, {}, {}).info
    assert after.agreement is not None
    assert after.agreement.value == 1.0
    assert after.measured_on == "labelled.jsonl"
    other = llm_judge(spec.model_copy(update={"temperature": 0.5}), {}, {}).info
    assert other.agreement is None


# Forms of labelled pairs.


def test_summaries_are_pairs_that_a_model_decided(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", summaries("ours"), summaries("reference"))
    pairs, deciders = read_labelled([path], Skips())
    assert deciders is Deciders.MODEL
    assert [(p.chosen, p.rejected) for p in pairs] == [(GOOD, POOR), (POOR, GOOD)]
    assert [p.messages[0].content for p in pairs] == ["POST: a\n\nTL;DR:"] * 2
    assert [p.origin for p in pairs] == ["a.jsonl:1", "a.jsonl:2"]


def test_an_empty_answer_to_a_prompt_is_compared(server: JudgeStandIn, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}", "chosen": "Yes.", "rejected": " \n"} for i in range(3)]
    rows.append({"prompt": "Q3", "chosen": "", "rejected": "No."})
    path = written(tmp_path / "a.jsonl", *rows, {"prompt": "Q", "chosen": "", "rejected": ""})
    skips = Skips()
    pairs, deciders = read_labelled([path], skips)
    assert deciders is Deciders.PEOPLE
    assert [(p.chosen, p.rejected) for p in pairs] == [("Yes.", "")] * 3 + [("", "No.")]
    assert str(skips) == "empty answer: 1 (first: a.jsonl:5)"

    server.choose = prefers_longer
    (found,) = checked(path, JudgeSpec(name="llm", source=server.url)).judges
    assert (found.alike, found.opposed) == (3, 1)


def test_an_answer_that_is_a_value_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "True?", "chosen": x, "rejected": "No."} for x in (True, 3, "Yes.")]
    skips = Skips()
    pairs, _ = read_labelled([written(tmp_path / "a.jsonl", *rows)], skips)
    assert [p.chosen for p in pairs] == ["Yes."]
    assert str(skips) == "answer that is a value and no text: 2 (first: a.jsonl:1)"
    path = written(tmp_path / "b.jsonl", *rows[:2])
    with pytest.raises(InputError, match=r"no usable pair in .*b\.jsonl \(answer that is a value"):
        read_labelled([path], Skips())


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (["chosen"], "expected an object, found list"),
        ({"prompt": "a", "chosen": "b"}, "'rejected' is missing or null .*Or a TL;DR comparison"),
        ({"prompt": "a", "chosen": True}, "'rejected' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": {}}, "'rejected' must be a text"),
        (summaries(None), "'preferred' must be 'ours'.*; found None"),
        (summaries("model"), "'preferred' must be .*; found 'model'"),
        (summaries(["ours"]), r"'preferred' must be .*; found \['ours'\]"),
        (summaries("ours", model_summary=None), "'model_summary' is null"),
        (summaries("ours", prompt=7), "'prompt' must be a text, found a number"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, row: object, problem: str) -> None:
    path = written(tmp_path / "bad.jsonl", ROWS[0], row)
    with pytest.raises(DataError, match=rf"bad\.jsonl:2: {problem}"):
        read_labelled([path], Skips())


def test_labels_of_people_and_of_a_model_are_not_mixed(tmp_path: Path, pairs: Path) -> None:
    other = written(tmp_path / "tldr.jsonl", summaries("ours"))
    with pytest.raises(InputError, match="some of the pairs were decided by people and some by a"):
        read_labelled([pairs, other], Skips())


def test_agreement_with_a_model_is_kept_for_no_report(
    server: JudgeStandIn, tmp_path: Path, tbpo: Tbpo
) -> None:
    rows = [summaries("ours", prompt=f"POST: {i}") for i in range(4)]
    path = written(tmp_path / "tldr.jsonl", *rows)
    spec = JudgeSpec(name="llm", source=server.url)
    check = checked(path, spec)
    assert check.deciders is Deciders.MODEL
    assert check.judges[0].figures["agreement with a model"].value == 1.0
    assert llm_judge(spec, {}, {}).info.agreement is None
    code, out, _ = tbpo("judge", "check", "--pairs", path, "--judge", f"llm={server.url}")
    assert code == 0
    assert "decided by a model, not by people: what is found is kept for no report" in out
    assert "decided alike 4, tie 0, against a model 0" in out
    assert "people [" not in out


# Judges that give no verdict.


def test_a_judge_that_does_not_reply_is_not_measured(
    server: JudgeStandIn, pairs: Path, tbpo: Tbpo
) -> None:
    spec = JudgeSpec(name="llm", source=server.url)
    server.plan = always(Fault.ERROR)
    with pytest.raises(EngineError, match=r"gave no usable reply on 12 of 12 pairs \(first: "):
        checked(pairs, spec)
    assert llm_judge(spec, {}, {}).info.agreement is None
    words = ["judge", "check", "--pairs", pairs, "--judge", f"llm={server.url}"]
    code, out, err = tbpo(*words, "--endpoint-set", "attempts=1")
    assert (code, out) == (4, "")
    assert "run the same command to ask for the rest" in err
    server.plan = lambda: None
    assert tbpo(*words)[0] == 0


def test_a_judge_without_a_verdict_says_why_and_is_not_kept(
    server: JudgeStandIn, pairs: Path, tbpo: Tbpo
) -> None:
    spec = JudgeSpec(name="llm", source=server.url)
    server.slip = lambda: Slip.GARBAGE
    (found,) = checked(pairs, spec).judges
    assert found.figures["agreement with people"].value is None
    assert found.figures["invalid"].value == 1.0
    assert "no verdict could be read from 3 replies" in str(found.reason)
    assert llm_judge(spec, {}, {}).info.agreement is None
    code, out, _ = tbpo("judge", "check", "--pairs", pairs, "--judge", f"llm={server.url}")
    assert code == 0
    assert "no verdict on some pairs, first: candidate first: no verdict could be read" in out


def test_the_context_of_a_judge_in_process_is_its_own_where_it_is_asked_alone(
    folder: Path,
) -> None:
    spec = JudgeSpec(name="local", source=str(folder))

    def context(engine: dict[str, Any], **how: bool) -> int:
        transport = llm_judge(spec, engine, {}, **how).transport
        assert isinstance(transport, InProcess)
        return transport._max_model_len

    own = context({})
    assert own > 48
    assert context({"max_model_len": 48}) == own
    assert context({"max_model_len": 48}, own_length=True) == 48
    assert context({}, own_length=True) == own
    with pytest.raises(InputError, match="beyond the model's own limit"):
        context({"max_model_len": 10**6}, own_length=True)
    with pytest.raises(InputError, match="max_model_len"):
        context({"max_model_len": "long"}, own_length=True)


def test_command(server: JudgeStandIn, pairs: Path, tbpo: Tbpo) -> None:
    words = ["judge", "check", "--pairs", pairs, "--limit", "4"]
    judge = f"llm={server.url}"
    code, out, _ = tbpo(*words, "--judge", judge)
    assert code == 0
    assert "4 pairs of labelled.jsonl, first 4 pairs, shown in both orders" in out
    assert "agreement with people" in out
    code, out, _ = tbpo(*words, "--judge", judge, "--json")
    assert json.loads(out)["judges"][0]["alike"] == 4
    refused(tbpo(*words), "no judge given")
    refused(tbpo(*words, "--judge", judge, "--judge", judge), "two judges have one name")
    refused(tbpo(*words, "--judge", f"{judge},colour=red"), "unknown key 'colour'")
    refused(tbpo("judge", "check", "--judge", judge, "--pairs", "none.jsonl"), "none.jsonl")
