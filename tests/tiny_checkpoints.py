"""Checkpoints small enough to be made in a test: a byte-level tokenizer, a two-layer Llama."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
VOCABULARY = 264
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "float32",
}


def save_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """Save a tokenizer whose tokens are the special ones and the 256 bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *symbols])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


LINES = (
    "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
"""A template whose generation marker is text that ends in a line break."""


def save_sentencepiece(folder: Path, template: str = LINES, scheme: Any = "first") -> None:
    """Save a tokenizer of characters which marks word boundaries as SentencePiece does.

    ``scheme``: "first" marks the start of a text, "always" that of each part between special
    tokens too. Its only merges are a marked g, and a colon with a bracket after it.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", "\u2581", *map(chr, range(33, 127))]
    tokens = [*SPECIAL, *characters, "\u2581g", ":)"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\u2581", "g"), (":", ")")]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def save_checkpoint(folder: Path, tokenizer: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a folder that looks like a checkpoint; its weights fit no model."""
    from safetensors.numpy import save_file

    shutil.copytree(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    weight = np.random.default_rng(seed).standard_normal((4, 4)).astype("float32")
    save_file({"w": weight}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_llama(folder: Path, tokenizer: Path, seed: int = 0, **changes: Any) -> Path:
    """Save a random Llama that transformers can load, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shutil.copytree(tokenizer, folder)
    LlamaForCausalLM(LlamaConfig(**(CONFIG | changes))).save_pretrained(folder)
    return folder


def save_lora(folder: Path, base: Path, seed: int = 0, **changes: Any) -> Path:
    """Save a PEFT LoRA on ``base`` with random A and B, as PEFT's own code writes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **(settings | changes)))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    adapted.save_pretrained(folder)
    return folder


def read_tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(file)


def write_tensors(values: dict[str, Any], file: Path) -> None:
    """Write a safetensors file as transformers does."""
    from safetensors.torch import save_file

    save_file(values, file, metadata={"format": "pt"})


def change_tensor(file: Path, name: str, value: float) -> None:
    """Set the first element of one tensor of a safetensors file."""
    values = read_tensors(file)
    values[name].view(-1)[0] = value
    write_tensors(values, file)


def edit_json(file: Path, **changes: Any) -> None:
    """Set entries of a JSON object in a file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def save_shards(folder: Path, model: Path) -> Path:
    """Save a model again in several shards with an index."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder, max_shard_size="20KB")
    return folder
