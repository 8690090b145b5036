"""``tbpo judge annotate``: recorded answers become annotations that ``tbpo winrate`` reads."""

from __future__ import annotations

import json
import logging
import math
import sys
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
)
from metric_records import SHARED
from openai_stand_in import Fault, always
from recorded_files import chat, write_csv, write_json, write_jsonl

from harness.annotating import (
    Annotated,
    Annotation,
    Via,
    annotate,
)
from harness.errors import InputError
from harness.judges.llm import BudgetError
from harness.pairing import Lacking, Source, instruction_text, match, read_answers
from harness.types import JudgeSpec, Message, Role

KEY = "sk-planted-0815"
QUICK = {"attempts": 4, "timeout_s": 30.0, "backoff_s": 0.002}
ALPACA = SHARED / "alpaca_eval"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[JudgeStandIn]:
    with judge_stand_in() as state:
        yield state


def row(i: int, output: str | None, generator: str, **changes: Any) -> dict[str, Any]:
    return {"instruction": f"Question {i}?", "output": output, "generator": generator} | changes


def files(folder: Path, count: int = 6) -> tuple[Path, Path]:
    """Write answers of ``dpo``, two of three better than those of ``base``."""
    ours = [row(i, f"{POOR if i % 3 == 2 else GOOD} {i}", "dpo") for i in range(count)]
    theirs = [
        row(i, f"{GOOD if i % 3 == 2 else POOR} {i} longer", "base", dataset=f"d{i % 2}")
        for i in range(count)
    ]
    folder.mkdir(exist_ok=True)
    return write_json(folder / "ours.json", ours), write_jsonl(
        folder / "theirs.jsonl", theirs[::-1]
    )


def annotated(url: str, outputs: Path, reference: Path, **changes: Any) -> Annotated:
    given = {"via": Via.OWN, "limit": None, "engine": {}, "endpoint": QUICK, "budget": {}}
    spec = changes.pop("spec", {})
    options: dict[str, Any] = given | {"prices": None} | changes
    judge = JudgeSpec.model_validate({"name": "llm", "source": url} | spec)
    return annotate(judge, Source(outputs), Source(reference), "instruction_following", **options)


def preferences(found: Annotated) -> list[float | None]:
    return [annotation.preference for annotation in found.annotations]


# Annotations.


def test_a_row_for_each_prompt_in_the_order_of_the_outputs(
    server: JudgeStandIn, tmp_path: Path
) -> None:
    found = annotated(server.url, *files(tmp_path))
    assert preferences(found) == [2.0, 2.0, 1.0] * 2
    assert found.annotations[2] == Annotation(
        instruction="Question 2?",
        output_1=f"{GOOD} 2 longer",
        output_2=f"{POOR} 2",
        generator_1="base",
        generator_2="dpo",
        annotator="llm",
        preference=1.0,
        raw_completion={
            "candidate_first": '{"verdict": "B"}',
            "baseline_first": '{"verdict": "A"}',
        },
        dataset="d0",
    )
    assert (found.decided, found.equal, found.lacking) == (6, 0, Lacking())
    assert server.posts == 12


def test_a_degree_is_the_mean_of_both_orders(server: JudgeStandIn, tmp_path: Path) -> None:
    server.choose = prefers_first
    server.told = lambda _: {"A": math.log(0.8), "B": math.log(0.2)}
    assert preferences(annotated(server.url, *files(tmp_path, 2))) == pytest.approx([1.5, 1.5])
    server.choose = prefers_good
    server.told = lambda label: {label: math.log(0.9), "AB".replace(label, ""): math.log(0.1)}
    found = annotated(server.url, *files(tmp_path, 3), spec={"seed": 1})
    assert preferences(found) == pytest.approx([1.9, 1.9, 1.1])


def test_an_unreadable_reply_is_null_and_no_loss(server: JudgeStandIn, tmp_path: Path) -> None:
    server.slip = lambda: Slip.GARBAGE
    found = annotated(server.url, *files(tmp_path, 2), spec={"retries": 0})
    assert preferences(found) == [None, None]
    assert (found.decided, found.unanswered) == (0, 0)
    assert found.annotations[0].raw_completion == dict.fromkeys(
        ("candidate_first", "baseline_first"), Slip.GARBAGE.value
    )


def test_equal_answers_tie_unasked(server: JudgeStandIn, tmp_path: Path) -> None:
    ours = write_json(tmp_path / "a.json", [row(i, f"{GOOD} {i}", "dpo") for i in range(2)])
    rows = [row(0, f"{GOOD} 0", "base"), row(1, POOR, "base")]
    found = annotated(server.url, ours, write_json(tmp_path / "b.json", rows))
    assert preferences(found) == [1.5, 2.0]
    assert (found.equal, server.posts) == (1, 2)
    assert found.annotations[0].raw_completion is None


def test_the_context_that_was_asked_for_is_the_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(*_: Any, own_length: bool = False) -> None:
        raise InputError(f"own length: {own_length}")

    monkeypatch.setattr("harness.annotating.llm_judge", noted)
    with pytest.raises(InputError, match="own length: True"):
        annotated("http://127.0.0.1:9", *files(tmp_path, 1))


def test_the_suite_chooses_the_judges_prompt(server: JudgeStandIn, tmp_path: Path) -> None:
    annotated(server.url, *files(tmp_path, 1))
    spec = JudgeSpec(name="llm", source=server.url)
    given = tuple(map(Source, files(tmp_path, 1)))
    options: dict[str, Any] = {"via": Via.OWN, "limit": None, "engine": {}, "endpoint": QUICK}
    annotate(spec, *given, "hh/harmless", **options, budget={}, prices=None)
    assert len(server.asked) == 4


# Pairing.


def matched(folder: Path, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Any:
    a, b = write_jsonl(folder / "a.jsonl", ours), write_jsonl(folder / "b.jsonl", theirs)
    return match(read_answers(Source(a)), read_answers(Source(b)))


def test_what_makes_no_pair_is_counted(tmp_path: Path) -> None:
    ours = [row(i, f"a{i}", "dpo") for i in range(5)] + [row(4, "again", "dpo")]
    theirs = [row(i, f"b{i}", "base") for i in (1, 2, 3, 4, 7, 8)]
    theirs[2]["output"] = None
    found, lacking = matched(tmp_path, ours, theirs)
    assert [(a.text, b.text) for a, b in found] == [("a1", "b1"), ("a2", "b2"), ("a4", "b4")]
    assert lacking == Lacking(reference=1, output=2, null=1, repeated=1)


def test_outer_space_makes_no_other_prompt(tmp_path: Path) -> None:
    found, _ = matched(
        tmp_path,
        [row(0, "a", "dpo", instruction=" Why?\n")],
        [row(0, "b", "base", instruction="Why?")],
    )
    assert len(found) == 1


def test_system_messages_count_where_both_files_have_them(tmp_path: Path) -> None:
    def asked(system: str | None, output: str, name: str) -> dict[str, Any]:
        turns = [{"role": "system", "content": system}] if system else []
        messages = [*turns, {"role": "user", "content": "Why?"}]
        return {"messages": messages, "output": output, "model": name}

    theirs = [asked("Be rude.", "r", "base"), asked("Be kind.", "k", "base")]
    found, lacking = matched(tmp_path, [asked("Be kind.", "a", "dpo")], theirs)
    assert [b.text for _, b in found] == ["k"]
    assert lacking == Lacking(output=1)
    (pair,), _ = matched(tmp_path, [asked(None, "a", "dpo")], theirs[:1])
    assert pair[1].text == "r"


def test_later_questions_of_a_dialogue_are_left_out(tmp_path: Path) -> None:
    questions = [{"question_id": 81, "turns": ["One?", "Two?"]}]
    write_jsonl(tmp_path / "question.jsonl", questions)

    def answered(name: str) -> dict[str, Any]:
        return {"question_id": 81, "model_id": name, "choices": [{"index": 0, "turns": ["1", "2"]}]}

    found, lacking = matched(tmp_path, [answered("dpo")], [answered("base")])
    assert [a.id for a, _ in found] == ["81"]
    assert lacking == Lacking(dialogues=1)


def test_instructions_of_several_turns_say_who_speaks() -> None:
    assert instruction_text(chat("Why?")) == "Why?"
    turns = [*chat("Why?"), Message(role=Role.ASSISTANT, content="So."), *chat("Sure?")]
    assert instruction_text(turns) == "User: Why?\n\nAssistant: So.\n\nUser: Sure?"


def test_a_file_without_a_model_gives_its_own_name(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "mine.v2.csv", [{"prompt": "Why?", "output": "So."}])
    assert read_answers(Source(path)).name == "mine"


def test_files_that_make_no_comparison_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="both hold answers of 'dpo'"):
        matched(tmp_path, [row(0, "a", "dpo")], [row(0, "b", "dpo")])
    with pytest.raises(InputError, match=r"no pair of answers in .*In both files: 0,"):
        matched(tmp_path, [row(0, "a", "dpo")], [row(1, "b", "base")])
    with pytest.raises(InputError, match="with a null answer 1,"):
        matched(tmp_path, [row(0, None, "dpo")], [row(0, "b", "base")])
    path = write_jsonl(tmp_path / "ids.jsonl", [{"id": 7, "output": "a"}])
    with pytest.raises(InputError, match=r"recorded without their prompt \(first id: 7\)"):
        read_answers(Source(path))


@pytest.mark.skipif(not ALPACA.is_dir(), reason="no shared/data/alpaca_eval beside the checkout")
@pytest.mark.parametrize("name", ["gemma-2-9b-it-DPO", "Llama-3-Instruct-8B-SimPO"])
def test_published_outputs_all_find_their_reference(name: str) -> None:
    ours = read_answers(Source(ALPACA / "outputs_only" / f"{name}.jsonl.gz"))
    theirs = read_answers(Source(ALPACA / "reference_gpt4_1106_preview.jsonl.gz"))
    found, lacking = match(ours, theirs)
    assert (len(found), lacking) == (805, Lacking())
    assert (ours.name, theirs.name) == (name, "gpt4_1106_preview")
    assert len(theirs.datasets) == 805


# The command.


def words(server: JudgeStandIn, paths: tuple[Path, Path], output: Path) -> list[str | Path]:
    settings = [f"--endpoint-set={key}={value}" for key, value in QUICK.items()]
    given = ["--outputs", paths[0], "--reference", paths[1], "--output", output]
    return ["judge", "annotate", "--judge", f"llm={server.url}", *settings, *given]


def test_winrate_reads_what_annotate_writes(
    server: JudgeStandIn, tmp_path: Path, tbpo: Tbpo
) -> None:
    output = tmp_path / "new" / "annotations.json"
    code, out, _ = tbpo(*words(server, files(tmp_path, 9), output))
    assert code == 0
    assert out.splitlines() == [
        "9 pairs of dpo against base, judged by llm in both orders",
        "with a verdict 9, without 0",
        f"annotations: {output}",
        f"intervals, and at equal length: tbpo winrate {output} --length-control alpaca-eval",
    ]
    code, out, _ = tbpo("winrate", output, "--length-control", "none", "--json")
    (standing,) = json.loads(out)
    assert standing["win_rate"] == pytest.approx(100 * 6 / 9)
    assert (standing["model"], standing["baseline"], standing["judge"]) == ("dpo", "base", "llm")
    assert (standing["n_wins"], standing["n_wins_base"], standing["n_total"]) == (6, 3, 9)


def test_gaps_are_said_and_stay_gaps(server: JudgeStandIn, tmp_path: Path, tbpo: Tbpo) -> None:
    ours, theirs = files(tmp_path, 6)
    rows = json.loads(ours.read_text())
    write_json(ours, [*rows, row(77, GOOD, "dpo")])
    server.refuses = {f"{GOOD} 0"}
    output = tmp_path / "annotations.json"
    code, out, _ = tbpo(*words(server, (ours, theirs), output))
    assert code == 0
    assert "with a verdict 5, without 1" in out
    assert "left out: 1 answers to prompts without a reference answer" in out
    written = json.loads(output.read_text())
    assert [r["preference"] for r in written] == [None, 2.0, 1.0, 2.0, 2.0, 1.0]
    _, out, _ = tbpo("winrate", output, "--length-control", "none", "--json")
    (standing,) = json.loads(out)
    assert (standing["n_total"], standing["n_missing"]) == (5, 1)
    assert standing["win_rate"] == pytest.approx(60.0)


def test_json_says_all_but_the_rows(server: JudgeStandIn, tmp_path: Path, tbpo: Tbpo) -> None:
    given = words(server, files(tmp_path), tmp_path / "annotations.json")
    code, out, _ = tbpo(*given, "--json", "--limit", "2")
    found = json.loads(out)
    assert code == 0
    assert (found["pairs"], found["decided"], found["official"]) == (2, 2, None)
    assert "annotations" not in found


def test_a_silent_server_leaves_null_and_the_next_call_goes_on(
    server: JudgeStandIn, tmp_path: Path, tbpo: Tbpo
) -> None:
    output, paths = tmp_path / "annotations.json", files(tmp_path, 3)
    server.plan = always(Fault.ERROR)
    code, out, err = tbpo(*words(server, paths, output))
    assert code == 4
    assert "3 verdicts are missing" in err
    assert "with a verdict 0, without 3" in out
    server.plan = lambda: None
    code, out, _ = tbpo(*words(server, paths, output))
    assert code == 0
    assert "with a verdict 3, without 0" in out


def test_a_budget_stops_and_what_was_judged_is_not_asked_again(
    server: JudgeStandIn, tmp_path: Path
) -> None:
    paths = files(tmp_path)
    with pytest.raises(BudgetError):
        annotated(server.url, *paths, budget={"requests": 5})
    assert server.posts == 5
    assert annotated(server.url, *paths).decided == 6
    assert server.posts == 12
    with pytest.raises(InputError, match="--budget: unknown key 'euro'"):
        annotated(server.url, *paths, budget={"euro": 5})


def test_refusals(server: JudgeStandIn, tmp_path: Path, tbpo: Tbpo) -> None:
    paths, output = files(tmp_path), tmp_path / "annotations.json"
    given = words(server, paths, output)
    refused(tbpo(*given, "--judge", f"llm={server.url},colour=red"), "unknown key 'colour'")
    refused(tbpo(*given, "--output", paths[0]), "is one of the files to be judged")
    refused(tbpo(*given, "--output", tmp_path), "cannot be written")
    refused(tbpo(*given, "--model", "sft"), "unknown model 'sft'. Known: dpo")
    refused(tbpo(*given, "--outputs", tmp_path / "none.json"), "none.json cannot be read")
    assert not output.exists()


def test_without_the_package_its_way_is_refused(
    server: JudgeStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "alpaca_eval", None)
    with pytest.raises(InputError, match=r"pip install alpaca-eval=="):
        annotated(server.url, *files(tmp_path), via=Via.ALPACA_EVAL)
    assert server.posts == 0


def test_the_key_reaches_no_file_and_no_log(
    server: JudgeStandIn,
    tmp_path: Path,
    tbpo: Tbpo,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.key, server.echo, server.slip = KEY, f" (sent with {KEY})", lambda: Slip.GARBAGE
    output = tmp_path / "annotations.json"
    code, out, err = tbpo(*words(server, files(tmp_path, 3), output))
    assert code == 0
    assert "(key)" in output.read_text()
    texts = [out, err, caplog.text]
    texts += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in text for text in texts)
