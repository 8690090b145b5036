"""Chat templates: a checkpoint's own or the user's choice; differences are not passed over."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import TEMPLATE, edit_json, save_checkpoint

from harness.adapters.hf_folder import HfFolder
from harness.adapters.templates import check_templates
from harness.errors import CheckpointError
from harness.types import CheckpointSpec, Form, Loadable

OTHER = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
JINJA = "chat_template.jinja"


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    return save_checkpoint(tmp_path / "model", tokenizer_folder)


def prepared(folder: Path, name: str = "x", template: Path | str | None = None) -> Loadable:
    chosen = None if template is None else str(template)
    given = CheckpointSpec(name=name, source=str(folder), chat_template=chosen)
    return HfFolder().prepare(given)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("template", [None, "own"])
def test_own_template_is_used_where_no_other_is_named(folder: Path, template: str | None) -> None:
    found = prepared(folder, template=template)
    assert (found.chat_template, found.template_sha256) == (None, sha256(TEMPLATE))


def test_named_template_replaces_the_own_one(
    folder: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    file = tmp_path / "other.jinja"
    file.write_text(OTHER)
    donor = save_checkpoint(tmp_path / "donor", tokenizer_folder)
    (donor / JINJA).write_text(OTHER)
    for template in (file, donor):
        found = prepared(folder, template=template)
        assert (found.chat_template, found.template_sha256) == (OTHER, sha256(OTHER))
    assert (folder / JINJA).read_text() == TEMPLATE


def test_missing_template_is_refused_unless_one_is_named(
    folder: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    (folder / JINJA).unlink()
    for template in (None, "own"):
        with pytest.raises(CheckpointError, match=r"no chat template.*chat_template=FILE"):
            prepared(folder, template=template)
    donor = save_checkpoint(tmp_path / "donor", tokenizer_folder)
    assert prepared(folder, template=donor).chat_template == TEMPLATE


def test_named_template_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone is neither a file nor a folder\. Give 'own'"):
        prepared(folder, template=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty has no chat template"):
        prepared(folder, template=tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="binary cannot be read"):
        prepared(folder, template=tmp_path / "binary")


@pytest.mark.parametrize("where", ["own", "named"])
@pytest.mark.parametrize("text", ["{% for m in messages %}\n{{ m", "\n{{ x | no_such_filter }}"])
def test_broken_template_is_refused_with_its_line(
    folder: Path, tmp_path: Path, text: str, where: str
) -> None:
    file = folder / JINJA if where == "own" else tmp_path / "named.jinja"
    file.write_text(text)
    place = folder if where == "own" else file
    with pytest.raises(CheckpointError, match=rf"template of {place} is not valid Jinja: line 2"):
        prepared(folder, template=None if where == "own" else file)


def test_statements_that_transformers_allows_are_accepted(folder: Path) -> None:
    text = (
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
        "{{ tools | tojson }}{{ strftime_now('%Y') }}{{ raise_exception('x') }}"
    )
    (folder / JINJA).write_text(text)
    assert prepared(folder).template_sha256 == sha256(text)


TOOLS = {"name": "tool_use", "template": "?"}


@pytest.mark.parametrize("stored", [OTHER, [TOOLS, {"name": "default", "template": OTHER}]])
def test_template_in_the_tokenizers_settings_is_found(folder: Path, stored: Any) -> None:
    from transformers import AutoTokenizer

    (folder / JINJA).unlink()
    settings = folder / "tokenizer_config.json"
    edit_json(settings, chat_template=stored)
    assert prepared(folder).template_sha256 == sha256(OTHER)
    loaded = AutoTokenizer.from_pretrained(folder)
    text = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "[hi]"


def test_named_templates_without_a_default_are_no_template(folder: Path) -> None:
    (folder / JINJA).unlink()
    settings = folder / "tokenizer_config.json"
    edit_json(settings, chat_template=[TOOLS])
    with pytest.raises(CheckpointError, match="has no chat template"):
        prepared(folder)


# Between checkpoints.


def record(name: str, template: str | None, tokenizer: str | None = "t", **fields: Any) -> Loadable:
    said = fields.pop("said", None)
    return Loadable(
        spec=CheckpointSpec(name=name, source=name, chat_template=said),
        folder=name,
        weights_sha256=name,
        architecture="a",
        template_sha256=template,
        tokenizer_sha256=tokenizer,
        **fields,
    )


def test_different_templates_of_one_tokenizer_are_refused_by_group() -> None:
    given = [record("a", "1"), record("b", "2"), record("c", "1")]
    with pytest.raises(CheckpointError) as found:
        check_templates(given)
    assert "(a, c; b)" in str(found.value)
    assert "chat_template=own" in str(found.value)
    assert "chat_template=FOLDER" in str(found.value)


@pytest.mark.parametrize(
    "given",
    [
        [record("a", "1"), record("b", "1")],
        [record("a", "1"), record("b", "2", said="own"), record("c", "1")],
        [record("a", "1", said="own"), record("b", "2"), record("c", "2")],
        [record("a", "1"), record("b", "2", said="other.jinja")],
        [record("a", "1"), record("b", "2", tokenizer="another")],
        [record("a", "1"), record("b", None, tokenizer=None, form=Form.ENDPOINT)],
        [],
    ],
    ids=["same", "own", "own first", "named", "other tokenizer", "endpoint", "none"],
)
def test_templates_that_agree_or_were_asked_for_are_accepted(given: list[Loadable]) -> None:
    check_templates(given)


def test_one_excuse_does_not_excuse_the_others() -> None:
    given = [record("a", "1"), record("b", "2", said="own"), record("c", "3")]
    with pytest.raises(CheckpointError, match=r"\(a; c\)"):
        check_templates(given)
