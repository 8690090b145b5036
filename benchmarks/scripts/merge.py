"""A LoRA merged by hand, as evaluation scripts ask their user to: BASE ADAPTER OUTPUT."""

from __future__ import annotations

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    base, adapter, output = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(output)
    AutoTokenizer.from_pretrained(base).save_pretrained(output)


if __name__ == "__main__":
    main()
