"""Pages about suites: the committed ones are those that the declarations make."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
import yaml
from command_records import Tbpo, refused
from suite_records import write_suite

from harness.files import packaged
from harness.stability import FIGURES
from harness.suite_docs import INDEX, pages
from harness.suites import known_groups, known_suites, load_suite
from harness.types import MetricInfo, StabilityParameters

COMMITTED = Path(__file__).parents[1] / "docs" / "suites"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be fetched: pages come from declarations."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a page was made from fetched data")

    monkeypatch.setattr(httpx, "get", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_committed_pages_are_those_of_the_declarations(made: dict[str, str]) -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in COMMITTED.glob("*")}
    assert found.keys() == made.keys(), "run: tbpo suites docs --output docs/suites"
    stale = [name for name, text in made.items() if found[name] != text]
    assert stale == [], "run: tbpo suites docs --output docs/suites"


def test_every_suite_and_group_is_in_the_index(made: dict[str, str]) -> None:
    assert made.keys() == {INDEX, *(f"{name}.md" for name in known_suites())}
    links = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \|", made[INDEX], re.MULTILINE)
    assert links == [(name, name) for name in known_suites()]
    for name, group in known_groups().items():
        assert f"| `{name}` | {', '.join(group.suites)} |" in made[INDEX]


def test_page_says_what_the_declaration_does(made: dict[str, str]) -> None:
    for name, path in known_suites().items():
        declared, page = yaml.safe_load(path.read_text(encoding="utf-8")), made[f"{name}.md"]
        assert f"# {declared['title']}\n" in page
        assert f"Suite `{name}`, version {declared['version']}." in page
        assert declared["description"].strip() in page
        assert declared["citation"].strip() in page
        assert f"tbpo run --suite {name} --checkpoint NAME=SOURCE" in page
        for key in declared.get("primary", ()):
            assert f"| **{key}** |" in page, (name, key)
        for judge in declared.get("judges", ()):
            assert f"| `{judge}` |" in page
        data = declared.get("data", {})
        assert data.get("licence", declared.get("licence", "")) in page
        for value in (data.get("sha256"), data.get("url"), *data.get("hub", {}).values()):
            assert value is None or value in page


def test_page_of_a_training_suite_defines_its_figures(made: dict[str, str]) -> None:
    page = made["training_stability.md"]
    assert "| `spike_factor` | 2 |" in page
    assert [info.key in page for info in figures()] == [True] * len(figures())
    assert "above the median of its first 16 logged steps by more than 10 times" in page


def figures() -> list[MetricInfo]:
    return [figure.info(StabilityParameters()) for figure in FIGURES]


def test_page_of_given_answers_says_that_nothing_is_asked(made: dict[str, str]) -> None:
    page = made["preference_accuracy.md"]
    assert "Nothing is asked: answers that are given with the data are read." in page
    assert "None: there are no answers of the checkpoint's to judge." in page


def test_tables_have_as_many_cells_in_each_row(made: dict[str, str]) -> None:
    for name, text in made.items():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
            assert len(widths) == 1, (name, table)


def test_page_of_packaged_rows_has_their_hash_and_no_text_of_them(made: dict[str, str]) -> None:
    page = made["hh.md"]
    assert "| examples | 60 |\n| dialogues | 60 |" in page
    assert f"`{load_suite(packaged('hh.yaml')).content_sha256}`" in page
    for line in packaged("data/hh.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        assert all(m["content"] not in page for m in row["messages"] if len(m["content"]) > 20)


def test_pages_of_ones_own_suites(tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_suite(
        tmp_path,
        fields={"user": "Q: {q}\n\nA:", "reference": ["a", "b"], "subset": "kind"},
        data={
            "hub": {"dataset": "a/b", "file": "c.csv", "revision": "r1", "split": "test"},
            "licence": "MIT",
            "sha256": "0" * 64,
            "rows": 200,
            "seed": 7,
            "duplicates": "drop",
        },
        style="plain",
        metrics=["length"],
        primary=["tokens"],
        judges=[],
    )
    output = tmp_path / "docs"
    code, out, err = tbpo("suites", "docs", suite, "--output", output)
    assert (code, err) == (0, "")
    assert out == f"2 pages in {output}\n"
    page = (output / "own.md").read_text(encoding="utf-8")
    for text in (
        "| revision | `r1` |",
        "| split | test |",
        f"| SHA-256 of the file | `{'0' * 64}` |",
        "| rows taken | 200, chosen by hash with seed 7; of rows with one prompt the first |",
        "```text\nQ: {q}\n\nA:\n```",
        "| `a or b` | reference answer |",
        "| `kind` | subset |",
        "Each prompt is put as plain text, without a chat template.",
        "| **tokens** | neither | tokens | Length. ",
        "None by default; `tbpo run --judge",
        "tbpo run --suite own --data own=PATH",
    ):
        assert text in page, text
    index = (output / INDEX).read_text(encoding="utf-8")
    assert "| [own](own.md) | data from `a/b` | Own |" in index
    assert "Groups" not in index


def test_wrong_places_and_declarations_are_refused(tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_suite(tmp_path)
    words = ("suites", "docs", suite, "--output")
    refused(tbpo(*words, suite), "is a file; name a folder")
    write_suite(tmp_path, metrics=["lenght"])
    refused(tbpo(*words, tmp_path / "docs"), "unknown metric 'lenght'")
    assert not (tmp_path / "docs").exists()
