"""lm-eval on an engine of ours: what it is asked, what is scored, what is kept, what is refused."""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capability_records import (
    FILES,
    QUICK,
    ROWS,
    TASKS,
    LikingEngine,
    arc,
    declared,
    gsm8k,
    held,
    log,
    mmlu,
    subjects,
    suite,
    truthful,
    winogrande,
    write,
    write_data,
)
from fake_engine import FakeEngine
from suite_records import make_loadable

from harness.capability import AVERAGE, CapabilitySuite, evaluate, load_capability_suite
from harness.capability.loading import _counts, first_prompt, load_tasks, task_examples
from harness.capability.local import read_local
from harness.engines.settings import EngineSettings
from harness.errors import InputError
from harness.prompts import checkpoint_tokenizer
from harness.types import Example, Loadable, Score

MAX_LEN = 600


@pytest.fixture
def checkpoint(tokenizer_folder: Path) -> Loadable:
    return make_loadable("tiny", tokenizer_folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def documents(asked: CapabilitySuite, data: Path, limit: int | None) -> list[Example]:
    return [e for task in load_tasks(asked, data, limit) for e in task_examples(task)]


def number(text: str) -> int:
    """Return the document's number: the last one in the prompt that is evaluated."""
    return int(re.findall(r"\d+", text.split("\n\n")[-1])[0])


def likes(context: str, end: str) -> float:
    """Return log-probabilities of an engine that is right on even documents alone."""
    if end.startswith(" was better"):
        i = number(context)
        named = context.rsplit("because ", 1)[1]
        right = named.startswith(("Ann", "Eve")[i % 2])
    elif "arc" in end:
        i = number(context)
        right = end.endswith("ABCD"[i % 4])
    else:
        i = number(end)
        return log({"yes": 0.2, "maybe": 0.1, "no": 0.1 * (1 + 2 * (i % 2))}[end.split()[0]])
    return -1.0 if right == (i % 2 == 0) else -5.0


def says(prompt: str) -> str:
    i = int(re.findall(r"What is (\d+)", prompt)[-1])
    return f" Well.\n#### {2 * i}" if i % 2 == 0 else f" It is {2 * i}."


def liking(checkpoint: Loadable) -> LikingEngine:
    tokenizer = checkpoint_tokenizer(checkpoint)

    def decode(ids: Any) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    engine = LikingEngine(decode, likes, says)
    held(engine, checkpoint)
    return engine


def run(
    engine: LikingEngine, checkpoint: Loadable, data: Path, out: Path, **changes: Any
) -> list[Score]:
    given: dict[str, Any] = {"max_model_len": MAX_LEN, "limit": None, "data": data, "seed": 3}
    asked: CapabilitySuite = changes.pop("suite", suite())
    return evaluate(engine, checkpoint, asked, out=out, **(given | changes)).scores


def by_metric(scores: list[Score]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = defaultdict(dict)
    for score in scores:
        assert score.example_id not in found[score.metric]
        found[score.metric][score.example_id] = score.value
    return found


# -- the declaration ---------------------------------------------------------------------------


def test_packaged_suite_is_the_papers_table() -> None:
    packaged = Path(__file__).parents[1] / "suites" / "open_llm_leaderboard.yaml"
    found = load_capability_suite(packaged).spec
    assert [(c.task, c.shots, c.metric, c.filter, c.name) for c in found.tasks] == [
        ("arc_challenge", 25, "acc_norm", "none", "arc_challenge_acc_norm"),
        ("hellaswag", 10, "acc_norm", "none", "hellaswag_acc_norm"),
        ("mmlu", 5, "acc", "none", "mmlu_acc"),
        ("truthfulqa_mc2", 0, "acc", "none", "truthfulqa_mc2"),
        ("winogrande", 5, "acc", "none", "winogrande_acc"),
        ("gsm8k", 5, "exact_match", "strict-match", "gsm8k_exact_match"),
    ]
    assert not found.chat_template
    assert found.primary == (AVERAGE,)
    assert [info.key for info in found.metrics] == [*(c.name for c in found.tasks), AVERAGE]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tasks": []}, "tasks"),
        ({"shots": 3}, "unknown key 'shots'"),
        ({"tasks": [{"task": "arc_challenge", "shots": -1, "metric": "acc"}]}, "shots"),
        ({"tasks": [{"task": "gsm8k", "shots": 1, "metric": "m"}] * 2}, "'gsm8k' occurs twice"),
        (
            {
                "tasks": [
                    {"task": "a", "shots": 1, "metric": "acc", "key": "one"},
                    {"task": "b", "shots": 1, "metric": "acc", "key": "one"},
                ]
            },
            "metric key 'one' occurs twice",
        ),
        (
            {"tasks": [{"task": "a", "shots": 1, "metric": "acc", "key": AVERAGE}]},
            f"metric key '{AVERAGE}' occurs twice",
        ),
    ],
)
def test_wrong_declarations_say_where(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(declared(**changes)))
    with pytest.raises(InputError, match=f"own.yaml: .*{problem}"):
        load_capability_suite(path)


def test_hash_is_of_the_declaration(tmp_path: Path) -> None:
    hashes = set()
    for changes in ({}, {}, {"chat_template": True}):
        path = tmp_path / "own.yaml"
        path.write_text(json.dumps(declared(**changes)))
        hashes.add(load_capability_suite(path).content_sha256)
    assert len(hashes) == 2


# -- scores and files --------------------------------------------------------------------------


def test_scores_are_what_the_engine_likes(checkpoint: Loadable, data: Path, tmp_path: Path) -> None:
    scores = run(liking(checkpoint), checkpoint, data, tmp_path / "out")
    found = by_metric(scores)
    even = {i: float(i % 2 == 0) for i in range(ROWS)}
    kept = ROWS - 3  # two shots, and one that lm-eval draws more
    assert found["arc_challenge_acc_norm"] == {f"arc_challenge/{i}": even[i] for i in range(kept)}
    assert found["winogrande_acc"] == {f"winogrande/{i}": even[i] for i in range(kept)}
    assert found["gsm8k_exact_match"] == {f"gsm8k/{i}": even[i] for i in range(ROWS)}
    mass = {f"truthfulqa_mc2/{i}": 0.3 / (0.4 + 0.2 * (i % 2)) for i in range(ROWS)}
    assert found["truthfulqa_mc2"] == pytest.approx(mass)
    assert {s.suite for s in scores} == {"general"}
    assert {s.checkpoint for s in scores} == {"tiny"}
    assert {s.sample for s in scores} == {None}


def test_average_counts_every_task_alike(checkpoint: Loadable, data: Path, tmp_path: Path) -> None:
    scores = run(liking(checkpoint), checkpoint, data, tmp_path / "out")
    found = by_metric(scores)
    means = [np.mean(list(found[c.name].values())) for c in suite().spec.tasks]
    average = [s for s in scores if s.metric == AVERAGE]
    weights = [s.weight for s in average]
    assert np.mean(weights) == pytest.approx(1.0)
    weighted = np.average([s.value for s in average if s.value is not None], weights=weights)
    assert weighted == pytest.approx(np.mean(means))
    assert weighted != pytest.approx(np.mean([s.value for s in average if s.value is not None]))
    assert [s.example_id for s in average] == [e.id for e in documents(suite(), data, None)]


def test_files_are_lm_evals_own(checkpoint: Loadable, data: Path, tmp_path: Path) -> None:
    scores = run(liking(checkpoint), checkpoint, data, tmp_path / "out")
    folder = tmp_path / "out" / "tiny"
    assert sorted(p.name for p in folder.iterdir()) == [
        "results.json",
        *sorted(f"samples_{name}.jsonl" for name in QUICK),
    ]
    results = json.loads((folder / "results.json").read_text())
    found = by_metric(scores)
    for choice in suite().spec.tasks:
        of_task = results["results"][choice.task]
        values = [v for v in found[choice.name].values() if v is not None]
        assert of_task[f"{choice.metric},{choice.filter}"] == pytest.approx(np.mean(values))
        error = np.std(values, ddof=1) / len(values) ** 0.5
        assert of_task[f"{choice.metric}_stderr,{choice.filter}"] == pytest.approx(error)
        assert results["n-shot"][choice.task] == choice.shots
        config = results["configs"][choice.task]
        assert list(config["metadata"]["local_data"]) == (
            [FILES[choice.task]]
            if choice.task != "gsm8k"
            else [FILES["gsm8k"], "gsm8k_train_fewshot.jsonl"]
        )
    assert results["config"]["weights_sha256"] == checkpoint.weights_sha256
    assert results["config"]["fewshot_seed"] == 1234
    assert results["model_name"] == "tiny"
    assert results["lm_eval_version"] == "0.4.13"
    rows = [json.loads(x) for x in (folder / "samples_gsm8k.jsonl").read_text().splitlines()]
    assert Counter(row["filter"] for row in rows) == {
        "strict-match": ROWS,
        "flexible-extract": ROWS,
    }
    assert rows[0]["arguments"]["gen_args_0"]["arg_1"]["until"]


def test_second_evaluation_replaces_the_files(
    checkpoint: Loadable, data: Path, tmp_path: Path
) -> None:
    engine = liking(checkpoint)
    first = run(engine, checkpoint, data, tmp_path / "out", limit=2)
    results = tmp_path / "out" / "tiny" / "results.json"
    assert json.loads(results.read_text())["n-samples"]["gsm8k"]["effective"] == 2
    second = run(engine, checkpoint, data, tmp_path / "out")
    assert json.loads(results.read_text())["n-samples"]["gsm8k"]["effective"] == ROWS
    shared = {(s.metric, s.example_id): s.value for s in first}
    assert shared.items() <= {(s.metric, s.example_id): s.value for s in second}.items()


def test_nothing_is_changed_printed_or_fetched(
    checkpoint: Loadable,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run(liking(checkpoint), checkpoint, data, tmp_path / "first")
    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets")}
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.random(), torch.rand(1)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    capfd.readouterr()
    run(liking(checkpoint), checkpoint, data, tmp_path / "out")
    documents(suite(), data, None)
    assert capfd.readouterr() == ("", "")
    assert (random.random(), np.random.random(), torch.rand(1)) == expected
    assert {name: logging.getLogger(name).level for name in levels} == levels


def test_value_that_is_no_number_is_missing_with_a_reason(
    checkpoint: Loadable, data: Path, tmp_path: Path
) -> None:
    engine = liking(checkpoint)
    engine.likes = lambda context, end: -2000.0  # the sum of the probabilities is zero
    only = suite(["truthfulqa_mc2"])
    scores = run(engine, checkpoint, data, tmp_path / "out", suite=only)
    assert len(scores) == 2 * ROWS
    assert {(s.value, bool(s.reason)) for s in scores} == {(None, True)}


# -- what is asked -----------------------------------------------------------------------------


def test_documents_are_those_that_are_scored_without_shots(data: Path) -> None:
    found = documents(suite(), data, 3)
    assert [e.id for e in found] == [f"{name}/{i}" for name in QUICK for i in range(3)]
    assert [e.subset for e in found] == [name for name in QUICK for _ in range(3)]
    texts = {e.id: e.messages[0].content for e in found}
    assert texts["arc_challenge/1"] == "Question: Which arc 1?\nAnswer:"
    assert texts["winogrande/2"] == winogrande(2)["sentence"]
    assert texts["gsm8k/0"] == f"Question: {gsm8k(0)['question']}\nAnswer:"
    assert texts["truthfulqa_mc2/2"].endswith("\n\nQ: Is it 2?\nA:")
    assert all(isinstance(e, Example) for e in found)


def prompts(engine: LikingEngine, containing: str) -> list[str]:
    found = [engine.decode(ids) for ids, _ in engine.read]
    return [text for text in found if containing in text]


def test_shots_are_rows_that_are_not_evaluated(
    checkpoint: Loadable, data: Path, tmp_path: Path
) -> None:
    engine = liking(checkpoint)
    run(engine, checkpoint, data, tmp_path / "out", limit=2)
    asked = prompts(engine, "Which arc")
    assert len(asked) == 2 * 4
    for text in asked:
        *shown, last = re.findall(r"Which arc (\d)", text)
        assert len(set(shown)) == 2
        assert set(shown) <= {str(ROWS - 3), str(ROWS - 2), str(ROWS - 1)}
        assert last in "01"
        for i in map(int, shown):
            assert f"Question: Which arc {i}?\nAnswer: arc {i} {'ABCD'[i % 4]}\n\n" in text
    solved = [engine.decode(r.prompt) for r in engine.asked]
    for text in solved:
        *shown, last = re.findall(r"What is (\d+)", text)
        assert all(100 <= int(i) < 105 for i in shown)
        assert len(shown) == 2
        assert last in "01"


def test_generation_is_asked_as_lm_eval_asks(
    checkpoint: Loadable, data: Path, tmp_path: Path
) -> None:
    engine = liking(checkpoint)
    tokenizer = checkpoint_tokenizer(checkpoint)
    engine.says = lambda prompt: " Yes.\n#### 2\nQuestion: and\n#### 0"
    scores = run(engine, checkpoint, data, tmp_path / "out", suite=suite(["gsm8k"]))
    assert len({r.key for r in engine.asked}) == len(engine.asked) == ROWS
    for request in engine.asked:
        assert request.sampling.temperature == 0.0
        assert request.sampling.max_tokens == 256
        assert request.sampling.stop == ("Question:", "</s>", "<|im_end|>")
        assert list(request.prompt) == tokenizer(engine.decode(request.prompt))["input_ids"]
    values = {s.example_id: s.value for s in scores if s.metric == "gsm8k_exact_match"}
    assert values == {f"gsm8k/{i}": float(2 * i == 2) for i in range(ROWS)}


def test_long_prompts_are_cut_on_the_left_and_said_so(
    checkpoint: Loadable, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = liking(checkpoint)
    with caplog.at_level("WARNING"):
        run(engine, checkpoint, data, tmp_path / "out", max_model_len=300)
    assert max(len(ids) for ids, _ in engine.read) == 299
    assert {len(r.prompt) for r in engine.asked} == {300 - 256}
    assert all(engine.decode(r.prompt).endswith("\nAnswer:") for r in engine.asked)
    (said,) = [r.getMessage() for r in caplog.records if "cut on the left" in r.getMessage()]
    results = json.loads((tmp_path / "out" / "tiny" / "results.json").read_text())
    cut = results["config"]["prompts_cut"]
    assert cut >= ROWS
    assert f" {cut} prompts and their answers exceed max_model_len 300" in said


def test_chat_template_makes_turns(checkpoint: Loadable, data: Path, tmp_path: Path) -> None:
    engine = liking(checkpoint)
    tokenizer = checkpoint_tokenizer(checkpoint)
    chat = suite(["gsm8k"], chat_template=True)
    run(engine, checkpoint, data, tmp_path / "out", suite=chat, limit=1)
    (request,) = engine.asked
    text = tokenizer.decode(request.prompt)
    assert text.count("<s>") == 1
    assert re.findall(r"<\|\w+\|>", text) == ["<|user|>", "<|assistant|>"] * 3
    assert text.endswith(f"<|user|>Question: {gsm8k(0)['question']}\nAnswer:</s><|assistant|>")


def test_prompt_that_is_shown_is_the_one_that_is_asked(
    checkpoint: Loadable, data: Path, tmp_path: Path
) -> None:
    asked = suite()
    run(liking(checkpoint), checkpoint, data, tmp_path / "out", suite=asked)
    for task in load_tasks(asked, data):
        example_id, text = first_prompt(task, asked)
        assert example_id == f"{task.choice.task}/0"
        lines = (tmp_path / "out" / "tiny" / f"samples_{task.choice.task}.jsonl").read_text()
        logged = json.loads(lines.splitlines()[0])
        assert (logged["doc_id"], logged["arguments"]["gen_args_0"]["arg_0"]) == (0, text)


def test_group_is_run_as_lm_eval_groups_it(checkpoint: Loadable, tmp_path: Path) -> None:
    names = ("hellaswag", "mmlu")
    data = write_data(tmp_path / "data", names)
    engine = liking(checkpoint)
    engine.likes = lambda context, end: -1.0 if end.strip() in ("A", "ends 0 so 0.") else -3.0
    both = suite(names)
    scores = run(engine, checkpoint, data, tmp_path / "out", suite=both, limit=2 * 57)
    found = by_metric(scores)
    listed = subjects()
    assert len(listed) == 57
    # Two documents of each of 57 subjects, whose right answers are A and B.
    assert found["mmlu_acc"] == {f"mmlu/{s}/{i}": 1.0 - i for s in listed for i in range(2)}
    assert len(found["hellaswag_acc_norm"]) == ROWS - 3
    results = json.loads((tmp_path / "out" / "tiny" / "results.json").read_text())
    assert results["groups"]["mmlu"]["acc,none"] == pytest.approx(0.5)
    assert results["results"]["mmlu_anatomy"]["acc,none"] == 0.5
    (text,) = {t for t in prompts(engine, "anatomy question 0?") if t.endswith("Answer: A")}
    assert text.startswith("The following are multiple choice questions (with answers) about anat")
    # One row of the subject is set aside; the next subject's fills up.
    after = listed[listed.index("anatomy") + 1]
    first, second, last = re.findall(r"(\w+) question (\d)\?", text)
    assert (first, second, last) == (("anatomy", "3"), (after, "3"), ("anatomy", "0"))


@pytest.mark.parametrize("limit", [1, 3, 40, 60])
def test_limit_is_spread_over_a_group(limit: int, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ["mmlu"])
    (whole,), (task,) = (load_tasks(suite(["mmlu"]), data, most) for most in (None, limit))
    assert sum(task.counts) == limit
    assert set(task.counts) <= {limit // 57, -(-limit // 57)} - {0}
    kept = [leaf.config.task for leaf in task.item.get_all_tasks()]
    assert kept == [leaf.config.task for leaf in task.leaves]
    places = [[leaf.config.task for leaf in whole.leaves].index(name) for name in kept]
    assert places == sorted(places)
    assert max(np.diff([-1, *places, 57])) <= -(-57 // limit)
    assert all(len(group) for group in task.item.get_all_groups())


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([5, 5, 5], None, [5, 5, 5]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([1, 2, 30], 30, [1, 2, 27]),
        ([4, 0, 4], 2, [1, 0, 1]),
        ([3, 4], 7, [3, 4]),
    ],
)
def test_what_small_tasks_lack_is_taken_from_larger_ones(
    sizes: list[int], limit: int | None, expected: list[int]
) -> None:
    assert _counts(sizes, limit) == expected


def test_group_with_some_of_its_tasks_is_averaged_over_those(
    checkpoint: Loadable, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", ["mmlu"])
    engine = liking(checkpoint)
    engine.likes = lambda context, end: -1.0 if end.strip() == "A" else -3.0
    scores = run(engine, checkpoint, data, tmp_path / "out", suite=suite(["mmlu"]), limit=3)
    found = by_metric(scores)["mmlu_acc"]
    assert list(found.values()) == [1.0] * 3
    folder = tmp_path / "out" / "tiny"
    results = json.loads((folder / "results.json").read_text())
    assert results["groups"]["mmlu"]["acc,none"] == 1.0
    names = {key.split("/")[1] for key in found}
    assert {p.stem for p in folder.glob("samples_*")} == {f"samples_mmlu_{n}" for n in names}
    listed = documents(suite(["mmlu"]), data, 3)
    assert [example.id for example in listed] == list(found)


def test_solved_examples_come_from_a_file_of_them(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ["mmlu", "winogrande"])
    write(data / "mmlu_dev.jsonl", [mmlu(s, i) for s in subjects() for i in (70, 71)])
    write(data / "winogrande_train.jsonl", [winogrande(i) for i in range(50, 54)])
    wanted = suite(["mmlu", "winogrande"])
    mmlu_rows, wino = (read_local(data, choice) for choice in wanted.spec.tasks)
    asked, shown = mmlu_rows.of("mmlu_anatomy")
    assert [row["question"] for row in asked] == [f"anatomy question {i}?" for i in range(4)]
    assert [row["question"] for row in shown] == ["anatomy question 70?", "anatomy question 71?"]
    asked, shown = wino.of("winogrande")
    assert (len(asked), len(shown)) == (ROWS, 4)


def hub_arc(i: int) -> dict[str, Any]:
    row = arc(i)
    listed = row["question"]["choices"]
    choices = {key: [c[key] for c in listed] for key in ("text", "label")}
    return {"question": row["question"]["stem"], "choices": choices, "answerKey": row["answerKey"]}


def hub_truthful(i: int) -> dict[str, Any]:
    row = truthful(i)
    targets = row["mc2_targets"]
    both = {"choices": list(targets), "labels": list(targets.values())}
    return {"question": row["question"], "mc2_targets": both}


def test_the_hubs_own_columns_make_the_same_rows(tmp_path: Path) -> None:
    own = write_data(tmp_path / "own", [*QUICK, "mmlu"])
    hub = write_data(tmp_path / "hub", [*QUICK, "mmlu"])
    write(hub / FILES["arc_challenge"], [hub_arc(i) | {"id": f"a{i}"} for i in range(ROWS)])
    write(hub / FILES["truthfulqa_mc2"], map(hub_truthful, range(ROWS)))
    write(
        hub / FILES["mmlu"],
        [mmlu(s, i) | {"answer": i % 4} for s in subjects() for i in range(4)],
    )
    for choice in suite([*QUICK, "mmlu"]).spec.tasks:
        assert read_local(hub, choice).tables == read_local(own, choice).tables
    write(hub / FILES["arc_challenge"], [hub_arc(i) | {"answerKey": "E"} for i in range(ROWS)])


# -- what is refused ---------------------------------------------------------------------------


def without(column: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {key: value for key, value in row.items() if key != column}


@pytest.mark.parametrize(
    ("task", "change", "problem"),
    [
        ("arc_challenge", without("answerKey"), "column 'answerKey' is missing"),
        ("arc_challenge", lambda r: r | {"answerKey": "Z"}, "'answerKey'.* none of the choices"),
        ("arc_challenge", lambda r: r | {"question": 7}, "'question' must be text, found 7"),
        ("hellaswag", without("endings"), "column 'endings' is missing"),
        ("hellaswag", lambda r: r | {"label": "9"}, "'label' must be the place of an ending"),
        ("mmlu", lambda r: r | {"answer": "E"}, "'answer' must be A to D or 0 to 3"),
        ("mmlu", lambda r: r | {"choices": ["a"]}, "'choices' has 1 texts, expected 4"),
        ("truthfulqa_mc2", without("mc2_targets"), "column 'mc2_targets' is missing"),
        ("truthfulqa_mc2", lambda r: r | {"mc2_targets": {"a": 2}}, "0 or 1 of every answer"),
        ("winogrande", lambda r: r | {"sentence": "No gap."}, "has no '_' to be filled"),
        ("winogrande", lambda r: r | {"answer": ""}, "'answer' must be 1 or 2"),
        ("gsm8k", lambda r: r | {"answer": "42"}, "no line '#### NUMBER'"),
    ],
)
def test_wrong_rows_are_named(
    tmp_path: Path, task: str, change: Callable[[dict[str, Any]], dict[str, Any]], problem: str
) -> None:
    data = write_data(tmp_path / "data", [task])
    path = data / FILES[task]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write(path, [*rows[:2], change(rows[2]), *rows[3:]])
    with pytest.raises(InputError, match=rf"{FILES[task]}:3: .*{problem}"):
        load_tasks(suite([task]), data)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ["winogrande"])
    path, wanted = data / FILES["winogrande"], suite(["winogrande"])
    path.write_bytes(b'{"sentence": "caf\xe9 _"}\n')
    with pytest.raises(InputError, match=r"winogrande_dev.jsonl:1: not valid UTF-8"):
        load_tasks(wanted, data)
    path.write_text("\n")
    with pytest.raises(InputError, match=r"winogrande_dev\.jsonl: the file is empty"):
        load_tasks(wanted, data)
    write(path, [winogrande(i) for i in range(3)])
    with pytest.raises(InputError, match=r"has 3 rows; 3 are set aside.*'winogrande_train.jsonl'"):
        load_tasks(wanted, data)
    path.unlink()
    with pytest.raises(InputError, match=r"no file 'winogrande_dev.jsonl' or"):
        load_tasks(wanted, data)


def test_subject_without_rows_is_named(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ["mmlu"])
    write(data / FILES["mmlu"], [mmlu(s, i) for s in subjects()[1:] for i in range(4)])
    with pytest.raises(InputError, match=rf"no row for lm-eval's task 'mmlu_{subjects()[0]}'"):
        load_tasks(suite(["mmlu"]), data)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metric": "bleu"}, "metric of lm-eval's task 'gsm8k' 'bleu'.*exact_match"),
        ({"filter": "none"}, "filter of lm-eval's task 'gsm8k' 'none'.*strict-match"),
    ],
)
def test_unknown_metrics_and_filters_list_the_known(
    data: Path, changes: dict[str, Any], problem: str
) -> None:
    wanted = suite(tasks=[{"task": "gsm8k", **TASKS["gsm8k"], **changes}])
    with pytest.raises(InputError, match=problem):
        load_tasks(wanted, data)


def test_task_without_a_local_form_is_refused(data: Path) -> None:
    wanted = suite(tasks=[{"task": "boolq", "shots": 0, "metric": "acc"}])
    with pytest.raises(InputError, match=r"local data are read for arc_challenge, .*'boolq'"):
        load_tasks(wanted, data)


def test_without_network_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    wanted = (
        r"'arc_challenge' \(ConnectionError: no route.*'arc_challenge_test.jsonl', split test of "
        r"allenai/ai2_arc \(ARC-Challenge\); solved examples in .*: --data general=DIR"
    )
    with pytest.raises(InputError, match=wanted):
        load_tasks(suite(), None)


def test_what_cannot_be_read_is_refused_before_anything_is_loaded(
    checkpoint: Loadable, data: Path, tmp_path: Path
) -> None:
    unmerged = checkpoint.model_copy(update={"lora": "somewhere"})
    with pytest.raises(InputError, match="leave out merge=false"):
        run(liking(checkpoint), unmerged, data / "nowhere", tmp_path / "out")
    plain: Any = held(FakeEngine(EngineSettings(), 0), checkpoint)
    with pytest.raises(InputError, match=r"give the checkpoint's weights"):
        run(plain, checkpoint, data / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_engine_that_dies_leaves_no_files(checkpoint: Loadable, data: Path, tmp_path: Path) -> None:
    from harness.errors import EngineDiedError

    engine = liking(checkpoint)

    def die(context: str, end: str) -> float:
        raise EngineDiedError("gone")

    engine.likes = die
    state = random.getstate()
    with pytest.raises(EngineDiedError, match="gone"):
        run(engine, checkpoint, data, tmp_path / "out")
    assert random.getstate() == state
    assert not (tmp_path / "out" / "tiny").exists()
