"""A GGUF file of a tiny Llama, written as llama.cpp's converter lays it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoints import CONFIG, SPECIAL, TEMPLATE, read_tensors

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}


def gguf_name(name: str) -> str:
    """Return the GGUF name of a Llama's tensor."""
    if name in NAMES:
        return NAMES[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{LAYER[part]}.weight"


def interleaved(weight: Any, heads: int) -> Any:
    """Return query or key rows in the order that llama.cpp's rotary embedding wants."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def save_gguf(file: Path, llama: Path, kind: str = "Q8_0", **fields: int) -> Path:
    """Write the Llama in a folder as GGUF, its matrices quantised as ``kind``."""
    import gguf

    config = json.loads((llama / "config.json").read_text())
    writer = gguf.GGUFWriter(str(file), "llama")
    _write_config(writer, config)
    _write_tokenizer(writer, llama)
    for key, value in fields.items():
        writer.add_uint16(key.replace("__", "."), value)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in read_tensors(llama / "model.safetensors").items():
        values = tensor.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            heads = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
            values = interleaved(values, config[heads])
        matrix = values.ndim > 1
        data = gguf.quantize(values, quantised) if matrix else values.astype(np.float32)
        writer.add_tensor(gguf_name(name), data, raw_dtype=quantised if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_config(writer: Any, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])


def _write_tokenizer(writer: Any, llama: Path) -> None:
    """Write the byte-level tokenizer with one merge, padded to the embedding's rows."""
    vocabulary = json.loads((llama / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    tokens.append("zq")
    tokens += [f"[PAD{i}]" for i in range(len(tokens), CONFIG["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(["z q"])
    writer.add_bos_token_id(CONFIG["bos_token_id"])
    writer.add_eos_token_id(CONFIG["eos_token_id"])
    writer.add_pad_token_id(CONFIG["pad_token_id"])
    writer.add_chat_template(TEMPLATE)
