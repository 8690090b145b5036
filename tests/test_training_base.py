"""Models of a run: which vocabularies fit together."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tiny_checkpoints import CONFIG, save_checkpoint, save_sentencepiece

from harness.errors import CheckpointError
from harness.training.base import check_tokenizer


def bare(folder: Path, vocabulary: int) -> Path:
    """A folder with a configuration and no tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": vocabulary}))
    return folder


def test_equal_vocabularies_fit_whatever_the_template(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    base, other = (save_checkpoint(tmp_path / n, tokenizer_folder) for n in "ab")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    check_tokenizer(base, other)


def test_another_vocabulary_is_refused_and_both_are_named(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    base = save_checkpoint(tmp_path / "base", tokenizer_folder)
    save_sentencepiece(tmp_path / "pieces")
    other = save_checkpoint(tmp_path / "other", tmp_path / "pieces")
    with pytest.raises(CheckpointError, match=r"other has another vocabulary than .*base; "):
        check_tokenizer(base, other)


def test_without_a_tokenizer_the_sizes_must_agree_and_the_log_says_so(
    tmp_path: Path, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_checkpoint(tmp_path / "base", tokenizer_folder)
    with caplog.at_level(logging.WARNING):
        check_tokenizer(base, bare(tmp_path / "same", CONFIG["vocab_size"]))
    assert "has no tokenizer: only vocabulary sizes are compared" in caplog.text
    with pytest.raises(CheckpointError, match=r"other has another vocabulary than .*base; "):
        check_tokenizer(base, bare(tmp_path / "other", CONFIG["vocab_size"] + 1))
