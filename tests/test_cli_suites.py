"""``tbpo suites``: lists without a fetch, checks all that a run needs, shows what is asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import huggingface_hub
import pytest
import yaml
from capability_records import write_data
from command_records import Tbpo, refused
from suite_records import EXAMPLES, SAMPLES, write_suite

from harness.adapters import prepare
from harness.capability.stage import plan_tasks
from harness.files import packaged, sha256_file
from harness.metrics.diversity import embeddings
from harness.suites import known_groups, known_suites, load_suite, names
from harness.types import CheckpointSpec

TASKS: dict[str, Any] = {
    "kind": "lm_eval",
    "name": "tasks",
    "version": 2,
    "title": "Two tasks",
    "description": "d",
    "tasks": [
        {"task": "arc_challenge", "shots": 25, "metric": "acc_norm"},
        {"task": "gsm8k", "shots": 5, "metric": "exact_match", "filter": "strict-match"},
    ],
    "licence": "various",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be fetched."""

    def refuse(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("nothing is fetched here")

    monkeypatch.setattr(httpx, "get", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(embeddings, "model_folder", lambda: Path())


def write(folder: Path, declared: dict[str, Any], file: str = "tasks.yaml") -> Path:
    (folder / file).write_text(yaml.safe_dump(declared))
    return folder / file


def write_dialogues(folder: Path) -> Path:
    """Write a suite of three dialogues: of one, two and three questions."""
    rows = [{"id": f"d{n}", "turns": [f"Ask {n}-{t}" for t in range(n)]} for n in (1, 2, 3)]
    (folder / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    declared = {
        "name": "dialogues",
        "version": 1,
        "title": "Dialogues",
        "description": "d",
        "data": {"path": "dialogues.jsonl", "licence": "CC0-1.0"},
        "fields": {"turns": "turns"},
        "sampling": {"temperature": 0.0, "max_tokens": 16},
        "metrics": ["length"],
        "primary": ["tokens"],
    }
    return write(folder, declared, "dialogues.yaml")


def write_elsewhere(folder: Path, **changes: Any) -> Path:
    """Write a suite whose rows are on the web."""
    path = write_suite(folder)
    declared = yaml.safe_load(path.read_text())
    place = {"url": "https://example.org/rows.jsonl", "licence": "MIT"}
    return write(folder, declared | {"data": place} | changes, "elsewhere.yaml")


# Listing.


def test_every_suite_and_group_is_listed_without_a_fetch(tbpo: Tbpo) -> None:
    code, out, err = tbpo("suites")
    assert (code, err) == (0, "")
    listed, _, groups = out.partition("groups:\n")
    assert [line.split()[0] for line in listed.splitlines()] == list(known_suites())
    assert "hh  v1  60 examples  Helpful and harmless" in listed.splitlines()
    for name, group in known_groups().items():
        assert f"  {name}: {', '.join(group.suites)}" in groups


def test_list_says_where_data_come_from(
    tmp_path: Path, tbpo: Tbpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "packaged", lambda *parts: tmp_path.joinpath(*parts))
    hub = {"dataset": "a/b", "file": "c.jsonl", "revision": "r"}
    write_elsewhere(tmp_path, name="elsewhere", data={"hub": hub, "licence": "MIT"})
    write(tmp_path, TASKS)
    group = {"title": "Some", "suites": ["own", "tasks"], "limit": 50, "judges": "whom you like"}
    write(tmp_path, {"some": group}, "groups.yaml")
    assert tbpo("suites")[1].splitlines() == [
        "elsewhere  v1  from hub data set a/b, file c.jsonl (revision r)  Own",
        f"own  v1  {EXAMPLES} examples  Own",
        "tasks  v2  2 tasks of lm-eval  Two tasks",
        "groups:",
        "  some: own, tasks, about 50 prompts of each  Some",
        "    judges: whom you like",
    ]
    rows = {row["name"]: row for row in json.loads(tbpo("suites", "--json")[1])}
    assert rows["elsewhere"]["data"]["hub"] == hub | {"split": None}
    assert (rows["elsewhere"]["examples"], rows["elsewhere"]["content_sha256"]) == (None, None)
    assert rows["own"]["content_sha256"] == load_suite(tmp_path / "own.yaml").content_sha256
    assert rows["own"]["groups"] == ["some"]
    assert rows["elsewhere"]["groups"] == []


def test_words_that_are_no_command_are_suites_to_show(tbpo: Tbpo) -> None:
    assert tbpo("suites", "hh") == tbpo("suites", "show", "hh")
    assert tbpo("suites", "--json", "hh") == tbpo("suites", "show", "hh", "--json")
    refused(tbpo("suites", "vaildate"), "unknown suite 'vaildate'")
    refused(tbpo("suites", "--json", "validate", "hh"), "put --json behind 'validate'")
    refused(tbpo("suites", "show", "outputs"), "'outputs' has no declaration")
    refused(tbpo("suites", "show"), "Missing argument 'NAME|FILE...'")


# Checking.


def test_sound_suites_get_a_line_each(tmp_path: Path, tbpo: Tbpo) -> None:
    write(tmp_path, TASKS)
    write_dialogues(tmp_path)
    code, out, err = tbpo(
        "suites", "validate", tmp_path / "dialogues.yaml", tmp_path / "tasks.yaml", "mini"
    )
    assert (code, err) == (0, "")
    found = dict(line.split("  ", 1) for line in out.splitlines())
    digest = load_suite(tmp_path / "dialogues.yaml").content_sha256
    assert found["dialogues"] == f"v1  6 examples, 3 dialogues  rows left out: none  {digest}"
    assert found["tasks"].startswith("v2  2 tasks of lm-eval, its data not looked at  ")
    assert found["hh"].startswith(
        "v1  60 examples, 60 dialogues  rows left out: none  1dc45ecdb70d"
    )
    assert set(found) == {"dialogues", "tasks", *known_groups()["mini"].suites}


def test_rows_left_out_are_counted_by_reason(tmp_path: Path, tbpo: Tbpo) -> None:
    def pair(question: str, chosen: str, rejected: str) -> str:
        row = {"prompt": question, "chosen": chosen, "rejected": rejected}
        return json.dumps(row) + "\n"

    write_suite(
        tmp_path,
        data={"path": "own.jsonl", "licence": "CC0-1.0", "duplicates": "drop"},
        fields={"pair": True, "id_from_prompt": True},
    )
    rows = [pair("a?", "x", "y"), pair("a?", "p", "q"), pair("b?", "x", "x"), pair("a?", "v", "w")]
    (tmp_path / "own.jsonl").write_text("".join(rows))
    code, out, err = tbpo("suites", "validate", tmp_path / "own.yaml")
    assert (code, err) == (0, "")
    assert "1 examples, 1 dialogues" in out
    assert "2 x the same prompt as an earlier row" in out
    (shown,) = json.loads(tbpo("suites", "show", tmp_path / "own.yaml", "--json")[1])
    assert sum(shown["used"]["left_out"].values()) == 3
    assert shown["used"]["rows"] == 4


def test_every_suite_is_checked_and_every_error_printed(tmp_path: Path, tbpo: Tbpo) -> None:
    for name, changes in (
        ("metric", {"metrics": ["lenght"]}),
        ("judge", {"judges": ["referee"]}),
        ("primary", {"primary": ["rouge_l"]}),
        ("unscorable", {"metrics": ["ifeval"], "primary": ["ifeval_prompt_strict"]}),
        ("key", {"colour": "red"}),
    ):
        (tmp_path / name).mkdir()
        write_suite(tmp_path / name, name=name, **changes)
    (tmp_path / "data").mkdir()
    write_suite(tmp_path / "data", data={"path": "gone.jsonl", "licence": "CC0-1.0"})
    files = [str(path) for path in sorted(tmp_path.glob("*/own.yaml"))]
    code, out, err = tbpo("suites", "validate", *files, "nowhere", "hh")
    assert code == 2
    assert [line.split("  ")[0] for line in out.splitlines()] == ["hh"]
    lines = err.splitlines()
    assert all(line.startswith("tbpo: ") for line in lines)
    for message in (
        "unknown suite 'nowhere'",
        "gone.jsonl cannot be read",
        "unknown judge 'referee'",
        "unknown key 'colour'",
        "unknown metric 'lenght'",
        "suite primary: primary metric 'rouge_l' is produced by none",
    ):
        assert sum(message in line for line in lines) == 1, message
    assert len(lines) == len(files) + 1


def test_other_content_under_a_packaged_name_and_version_is_refused(
    tmp_path: Path, tbpo: Tbpo
) -> None:
    message = "suite hh: the packaged suite of this name has another content as version 1. Raise"
    refused(tbpo("suites", "validate", write_suite(tmp_path, name="hh")), message)
    assert tbpo("suites", "validate", write_suite(tmp_path, name="hh", version=2))[0] == 0
    copy = tmp_path / "hh.yaml"
    copy.write_bytes(packaged("hh.yaml").read_bytes())
    (tmp_path / "data").mkdir()
    rows = packaged("data/hh.jsonl").read_text(encoding="utf-8")
    (tmp_path / "data" / "hh.jsonl").write_text(rows, encoding="utf-8")
    assert tbpo("suites", "validate", copy)[0] == 0
    (tmp_path / "data" / "hh.jsonl").write_text(rows.replace("dal ", "rice ", 1), encoding="utf-8")
    refused(tbpo("suites", "validate", copy), message)


def test_own_copy_of_the_data_is_taken(tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_elsewhere(tmp_path)
    words = ("suites", "validate", suite)
    refused(tbpo(*words), "suite 'own': its data cannot be fetched (nothing is fetched here)")
    code, out, err = tbpo(*words, "--data", f"own={tmp_path / 'own.jsonl'}")
    assert (code, err) == (0, "")
    assert out.startswith(f"own  v1  {EXAMPLES} examples")
    code, _, err = tbpo(*words, "--data", f"own={tmp_path / 'own.jsonl'}", "--data", "won=x")
    assert code == 2
    assert err == "tbpo: unknown suite of --data 'won'. Did you mean 'own'? Known: own.\n"
    shown = tbpo("suites", "show", suite, "--data", f"own={tmp_path / 'own.jsonl'}")[1]
    digest = sha256_file(tmp_path / "own.jsonl")
    assert f"  data: own.jsonl ({EXAMPLES} rows), SHA-256 {digest}" in shown.splitlines()
    refused(tbpo("suites", "show", suite, "--data", "won=x"), "unknown suite of --data 'won'")


# Showing.


def test_counts_and_lengths_are_those_of_the_file(tbpo: Tbpo) -> None:
    rows = [json.loads(line) for line in packaged("data/hh.jsonl").open(encoding="utf-8")]
    lengths = [sum(len(m["content"]) for m in row["messages"]) for row in rows]
    (shown,) = json.loads(tbpo("suites", "show", "hh", "--json")[1])
    assert shown["characters"] == {
        "prompts": len(rows),
        "median": median(lengths),
        "longest": max(lengths),
        "total": sum(lengths),
    }
    assert shown["subsets"] == Counter(row["subset"] for row in rows)
    assert (shown["examples"], shown["dialogues"]) == (len(rows), len(rows))
    assert shown["used"]["sha256"] == sha256_file(packaged("data/hh.jsonl"))
    assert shown["rendering"]["tokens"] is None
    assert "no checkpoint" in shown["rendering"]["reason"]
    keys = {info["key"] for info in shown["metric_definitions"]}
    assert {"unsafe_refused", "preference_accuracy", "tokens", "entropy"} <= keys
    assert [info["name"] for info in shown["judge_definitions"]] == ["reward"]
    declared = yaml.safe_load(packaged("hh.yaml").read_text())
    assert shown["metrics"] == declared["metrics"]
    assert shown["primary"] == declared["primary"]


def test_what_is_asked_is_said_in_words(tmp_path: Path, tbpo: Tbpo) -> None:
    sampling = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 2048, "samples": 5, "stop": ["\n"]}
    suite = write_suite(
        tmp_path,
        sampling=sampling,
        temperatures={"e0": 0.0},
        fields={"reference": "good", "rejected": "bad", "subset": "id"},
        citation="After nobody.",
    )
    lines = [line.strip() for line in tbpo("suites", "show", suite)[1].splitlines()]
    assert (
        "sampling: temperature 0.7, top-p 0.9, 5 answers a prompt of at most 2,048 tokens; an "
        "answer ends at '\\n'; temperature by subset: e0 0"
    ) in lines
    assert "prompts: in the checkpoint's chat template" in lines
    assert any(line.startswith("tokens: tokens, neither direction is better: ") for line in lines)
    assert any(line.startswith("preference_accuracy: primary, share, higher") for line in lines)
    assert "judges: reference" in lines
    assert "licence: CC0-1.0" in lines
    assert "citation: After nobody." in lines
    assert lines[-1] == "user: Question 0"


def test_given_answers_alone_ask_nothing(tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_suite(tmp_path, sampling=None, judges=[], metrics=["preference_accuracy"])
    assert "  sampling: nothing is asked: answers that are given" in tbpo("suites", suite)[1]


def test_tokens_are_counted_by_the_checkpoints_tokenizer(
    given: Path, tmp_path: Path, tbpo: Tbpo
) -> None:
    from transformers import AutoTokenizer

    suite = write_dialogues(tmp_path)
    words = ("suites", "show", suite, "--checkpoint", f"tiny={given / 'base'}")
    (shown,) = json.loads(tbpo(*words, "--json")[1])
    tokenizer = AutoTokenizer.from_pretrained(given / "base")

    def rendered(*turns: tuple[str, str]) -> str:
        chat = [{"role": role, "content": content} for role, content in turns]
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    first = [count(rendered(("user", f"Ask {n}-0"))) for n in (1, 2, 3)]
    assert shown["rendering"]["tokens"] == {
        "prompts": 3,
        "median": median(first),
        "longest": max(first),
        "total": sum(first),
    }
    # Two answers of 16 tokens stand before the third question; a dot stands for each here.
    turns = [("user", "Ask 3-0"), ("assistant", "."), ("user", "Ask 3-1"), ("assistant", ".")]
    longest = count(rendered(*turns, ("user", "Ask 3-2"))) + 2 * 16
    assert shown["rendering"]["longest_later"] == longest
    assert shown["rendering"]["text"] == rendered(("user", "Ask 1-0"))
    assert (shown["examples"], shown["dialogues"]) == (6, 3)
    out = tbpo(*words)[1]
    assert (
        f"  prompts in tokens of tiny: median {median(first)}, longest {max(first)}, all 3 "
        f"together {sum(first)}\n"
    ) in out
    assert f"  later questions of dialogues: at most {longest} tokens" in out
    assert out.endswith(f"  first prompt: d1\n{rendered(('user', 'Ask 1-0'))}\n")


def test_checkpoint_without_a_tokenizer_leaves_the_messages(tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_suite(tmp_path)
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "Question 0", "answer": "yes"}\n')
    recorded = prepare(CheckpointSpec(name="old", source=str(answers)))
    assert recorded.form == "recorded"
    out = tbpo("suites", "show", suite, "--checkpoint", f"old={answers}")[1]
    assert "  prompts in tokens: not known, 'old' is a file of recorded answers, whose" in out
    assert out.endswith("user: Question 0\n")
    refused(tbpo("suites", "show", suite, "--checkpoint", "old"), "expected NAME=SOURCE")
    refused(tbpo("suites", "show", suite, "--checkpoint", "x=y,z=1"), "unknown key 'z'")


def test_group_is_shown_cut_as_it_is_run(
    tmp_path: Path, tbpo: Tbpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "packaged", lambda *parts: tmp_path.joinpath(*parts))
    write_suite(tmp_path)
    write(tmp_path, {"few": {"title": "Few", "suites": ["own"], "limit": 3}}, "groups.yaml")
    (shown,) = json.loads(tbpo("suites", "show", "few", "--json")[1])
    assert (shown["examples"], shown["sampling"]["samples"]) == (3, SAMPLES)
    assert shown["content_sha256"] != load_suite(tmp_path / "own.yaml").content_sha256


def test_suites_without_prompts_are_shown_from_their_declarations(
    tmp_path: Path, tbpo: Tbpo
) -> None:
    out = tbpo("suites", "show", write(tmp_path, TASKS), "training_stability")[1]
    assert out.startswith("tasks  v2  2 tasks of lm-eval  Two tasks\n  d\n")
    assert "  task: gsm8k, 5 solved examples, metric exact_match\n" in out
    assert "\n\ntraining_stability  v1  training logs" in out
    assert "they were not looked at, and no prompt is shown. A folder of copies is: --data" in out
    rows = json.loads(tbpo("suites", "show", tmp_path / "tasks.yaml", "--json")[1])
    assert [task["task"] for task in rows[0]["tasks"]] == ["arc_challenge", "gsm8k"]
    refused(tbpo("suites", write(tmp_path, TASKS | {"tasks": []})), "tasks.yaml: tasks: ")


def test_tasks_of_lm_eval_are_shown_with_a_copy_of_their_data(
    tmp_path: Path, tbpo: Tbpo, tokenizer_folder: Path
) -> None:
    few = TASKS | {"tasks": [task | {"shots": 2} for task in TASKS["tasks"]]}
    path = write(tmp_path, few)
    data = write_data(tmp_path / "data", ["arc_challenge", "gsm8k"])
    given = ("suites", "show", path, "--data", f"tasks={data}")
    out = tbpo(*given)[1]
    assert "  gsm8k: 8 documents; gsm8k/0 with its solved examples tokens not known" in out
    assert out.rstrip().endswith("\nAnswer:")
    (row,) = json.loads(tbpo(*given, "--json")[1])
    assert row["examples"] == 5 + 8  # three rows of ARC are set aside for solved examples
    planned = plan_tasks(path, data, None)
    assert row["documents_sha256"] == planned.documents_sha256
    assert [p["example_id"] for p in row["prompts"]] == ["arc_challenge/0", "gsm8k/0"]
    for prompt in row["prompts"]:
        assert prompt["text"].count("Question:") == 3
    broken = tmp_path / "none"
    refused(tbpo(*given[:-1], f"tasks={broken}"), str(broken))
