"""``tbpo diversity``: the figures of a file of samples, and what is wrong with a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_records import Tbpo, refused
from form_runs import forbid_models
from recorded_files import write_csv, write_gzip, write_json, write_jsonl, write_parquet
from run_records import run_manifest, suite_card

from harness.compare import compare
from harness.diversity import file_diversity
from harness.metrics.diversity import (
    Compression,
    Distinct,
    DistinctN,
    Repetition,
    SelfBleu,
    SelfBleuAcross,
)
from harness.types import Example, Generation, MetricInfo, Score

KEYS = [
    *("distinct_1", "distinct_2", "distinct_1_answer", "distinct_3", "distinct_4"),
    *(f"distinct_{n}_adjusted" for n in (1, 2, 3, 4)),
    *("self_bleu", "self_bleu_across", "compression_ratio"),
    *("repetition_2", "repetition_3", "repetition_4"),
]
FAMILIES = (Distinct, DistinctN, SelfBleu, SelfBleuAcross, Compression, Repetition)


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_models(monkeypatch)


def rows(prompts: int = 12, samples: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(4)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "fast", "slowly", ",", "."]
    return [
        {
            "id": f"p{i}",
            "prompt": f"Question {i}",
            "samples": [
                {"text": " ".join(rng.choice(words, rng.integers(5, 25)))} for _ in range(samples)
            ],
        }
        for i in range(prompts)
    ]


def measured(tbpo: Tbpo, *words: str | Path) -> dict[str, Any]:
    code, out, err = tbpo("diversity", *words, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def figures(found: dict[str, Any]) -> dict[str, Any]:
    about = ("file", "prompts", "fewest_samples", "most_samples")
    return {key: value for key, value in found.items() if key not in about}


def test_every_figure_that_needs_no_model(tmp_path: Path, tbpo: Tbpo) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", rows())
    found = measured(tbpo, path)
    assert (found["file"], found["prompts"]) == (str(path), 12)
    assert (found["fewest_samples"], found["most_samples"]) == (3, 3)
    assert list(figures(found)) == KEYS
    for figure in figures(found).values():
        low, high = figure["interval"]
        assert low <= figure["mean"] <= high
        assert (figure["level"], figure["n"], figure["missing"]) == (0.95, 12, 0)
        assert figure["reasons"] == {}
        assert "cluster bootstrap" in figure["method"]
    assert found["repetition_2"]["observations"] == 36


def test_the_figures_are_those_of_a_comparison(tmp_path: Path) -> None:
    given = rows()
    path = write_jsonl(tmp_path / "dpo.jsonl", given)
    examples = [
        Example.model_validate({"id": r["id"], "messages": [{"role": "user", "content": "q"}]})
        for r in given
    ]
    answers = [
        Generation(
            checkpoint="dpo",
            weights_sha256="weights of dpo",
            request_sha256="r",
            suite="outputs",
            example_id=r["id"],
            sample=number,
            text=sample["text"],
            finish_reason=None,
        )
        for r in given
        for number, sample in enumerate(r["samples"])
    ]
    infos: list[MetricInfo] = []
    scores: list[Score] = []
    for family in FAMILIES:
        infos += family.info
        scores += family().score(examples, answers)
    card = suite_card("outputs", examples=len(given), metrics=infos, samples=3)
    manifest = run_manifest(card, checkpoints=["dpo"])
    compared = compare(manifest, scores, (), answers, {"outputs": examples})
    found = file_diversity(path).metrics
    assert list(found) == [result.metric.key for result in compared.metrics]
    for result in compared.metrics:
        assert found[result.metric.key].estimate == result.estimate


def test_the_figures_on_the_terminal(tmp_path: Path, tbpo: Tbpo) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", rows(samples=1))
    code, out, err = tbpo("diversity", path)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"{path}: 12 prompts, samples of each: 1"
    (line,) = [text for text in lines if text.split()[0] == "self_bleu"]
    assert "no data" in line
    assert line.endswith("n 0, missing 12")
    reason = "self-BLEU needs two samples with text, the prompt has 1"
    assert lines[lines.index(line) + 1] == f"    missing 12: {reason}"
    value = measured(tbpo, path)["distinct_1"]
    (line,) = [text for text in lines if text.split()[0] == "distinct_1"]
    low, high = value["interval"]
    assert f"{value['mean']:.3f} [{low:.3f}, {high:.3f}]" in line


def test_forms_of_file_and_of_samples_are_told_apart(tmp_path: Path, tbpo: Tbpo) -> None:
    given = rows()
    texts = [row | {"samples": [s["text"] for s in row["samples"]]} for row in given]
    coded = [row | {"samples": json.dumps(row["samples"])} for row in given]
    expected = figures(measured(tbpo, write_jsonl(tmp_path / "x.jsonl", given)))
    files = [
        write_gzip(tmp_path / "x.jsonl.gz", texts),
        write_json(tmp_path / "x.json", given),
        write_csv(tmp_path / "x.csv", coded),
        write_parquet(tmp_path / "x.parquet", given),
    ]
    for path in files:
        assert figures(measured(tbpo, path)) == expected


def test_entropy_where_samples_carry_it(tmp_path: Path, tbpo: Tbpo) -> None:
    given = rows()
    for row in given:
        row["samples"][0]["entropy"], row["samples"][1]["entropy"] = 1, 2.5
    found = figures(measured(tbpo, write_jsonl(tmp_path / "x.jsonl", given)))
    assert list(found) == [*KEYS, "entropy"]
    entropy = found["entropy"]
    assert (entropy["mean"], entropy["n"], entropy["observations"]) == (1.75, 12, 24)
    assert entropy["missing"] == 12
    assert entropy["reasons"] == {"nothing reported entropy over the whole vocabulary": 12}


def test_missing_values_are_counted_by_reason(tmp_path: Path, tbpo: Tbpo) -> None:
    given = rows()
    given[0]["samples"] = [{"text": ""}, {"text": "word"}]
    found = measured(tbpo, write_jsonl(tmp_path / "x.jsonl", given))
    assert (found["fewest_samples"], found["most_samples"]) == (2, 3)
    bleu = found["self_bleu"]
    assert (bleu["n"], bleu["missing"]) == (11, 1)
    assert bleu["reasons"] == {"self-BLEU needs two samples with text, the prompt has 1": 1}
    assert found["self_bleu_across"]["reasons"] == {"the answer has no text": 1}


def test_a_single_prompt_has_no_interval(tmp_path: Path, tbpo: Tbpo) -> None:
    found = figures(measured(tbpo, write_jsonl(tmp_path / "x.jsonl", rows(prompts=1))))
    assert found["distinct_1"]["mean"] is not None
    assert found["distinct_1"]["interval"] is None


def test_embeddings_are_asked_for(
    tmp_path: Path, tbpo: Tbpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", rows())
    monkeypatch.setenv("TBPO_EMBEDDING_MODEL", str(tmp_path))
    assert list(figures(measured(tbpo, path))) == KEYS
    refused(tbpo("diversity", path, "--embeddings"), "is not a model folder")


SAMPLE = {"text": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "b", "prompt": "q"}, "no samples: a row is a prompt with its samples"),
        ({"samples": [SAMPLE]}, "no id and no prompt: a row is"),
        ({"id": "b", "prompt": "q", "samples": None}, "no samples"),
        ({"id": "b", "prompt": "q", "samples": []}, "prompt 'b' has no sample"),
        ({"id": "b", "prompt": "q", "samples": "word"}, "samples: expected a list, found str"),
        (
            {"id": "b", "prompt": "q", "samples": {"x": 1}},
            "found an object with x",
        ),
        ({"id": "b", "prompt": "q", "samples": [SAMPLE, 3]}, "samples[1]: expected a text or"),
        ({"id": "b", "prompt": "q", "samples": [{"output": "a"}]}, "found an object with output"),
        ({"id": "b", "prompt": "q", "samples": [{"text": 5}]}, "samples[0].text: expected a text"),
        ({"id": "b", "prompt": "q", "samples": [{"text": None}]}, "a text, found nothing"),
        ({"id": "b", "prompt": "q", "samples": ["\ud800"]}, "half a character"),
        ({"id": "b", "prompt": ["q"], "samples": [SAMPLE]}, "prompt: expected a text, found list"),
        ({"id": 1.5, "prompt": "q", "samples": [SAMPLE]}, "id: expected a text or a whole number"),
        ({"id": "b\nc", "prompt": "q", "samples": [SAMPLE]}, "id: expected one line"),
        ({"id": "a", "prompt": "q", "samples": [SAMPLE]}, "id 'a' is also that of line 1"),
        (
            {"id": "b", "prompt": "q", "samples": [SAMPLE | {"entropy": "x"}]},
            "samples[0].entropy: expected a number, found str",
        ),
        (
            {"id": "b", "prompt": "q", "samples": [SAMPLE | {"entropy": -1}]},
            "samples[0].entropy: expected nats, 0 or more, found -1",
        ),
    ],
)
def test_broken_rows_are_refused_with_their_line(
    row: dict[str, Any], message: str, tmp_path: Path, tbpo: Tbpo
) -> None:
    good = {"id": "a", "prompt": "q", "samples": [SAMPLE]}
    path = write_jsonl(tmp_path / "x.jsonl", [good, row])
    found = tbpo("diversity", path)
    refused(found, message)
    assert found[2].startswith(f"tbpo: {path}:2: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file holds no row"),
        (b"\n\n", "the file holds no row"),
        (b'{"id": "a", "prompt": "q", "samples": ["x"]}\n\n{"id": \xff}', ":3: not valid UTF-8"),
        (b'{"id": "a",\n', ":1: not valid JSON"),
        (b"[3]", ":1: expected an object"),
        (b"plain words\n", "not JSON"),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    content: bytes, message: str, tmp_path: Path, tbpo: Tbpo
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    refused(tbpo("diversity", path), message)
    refused(tbpo("diversity", tmp_path / "gone.jsonl"), "gone.jsonl cannot be read")


def test_help_is_instant() -> None:
    code = (
        "import sys, harness.cli; heavy = {'torch', 'numpy', 'scipy', 'sacrebleu'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
