"""Reference logits of SmolLM2-135M-Instruct (Q4_1), as transformers reads the same GGUF file.

    scripts/get_models.sh && python tools/ref/smollm2_ref.py

Writes tests/fixtures/smollm2/logits.safetensors: per prompt its token ids and, for the first token of the answer, the
logits of the 64 likeliest tokens and of every 97th one. Needs gguf==0.19.0 besides requirements.txt.
"""
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import FIXTURES

CACHE = FIXTURES.parent.parent / "models" / "cache" / "smollm2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = ["The capital of France is", CHAT.format("What is the capital of Peru?"),
           "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +"]


def main():
    if not (CACHE / NAME).exists():
        sys.exit(f"{CACHE / NAME} is missing: run scripts/get_models.sh")
    torch.manual_seed(0)
    tok = AutoTokenizer.from_pretrained(CACHE, gguf_file=NAME)
    model = AutoModelForCausalLM.from_pretrained(CACHE, gguf_file=NAME, dtype=torch.float32).eval()
    out, meta = {}, {}
    for i, prompt in enumerate(PROMPTS):
        ids = tok(prompt, return_tensors="pt", add_special_tokens=True).input_ids
        with torch.no_grad():
            logits = model(ids).logits[0, -1].numpy()
        keep = np.union1d(np.argsort(-logits)[:64], np.arange(0, len(logits), 97)).astype(np.int32)
        out[f"{i}.ids"] = ids[0].numpy().astype(np.int32)
        out[f"{i}.index"] = keep
        out[f"{i}.logits"] = logits[keep].astype(np.float32)
        meta[f"{i}.prompt"] = prompt
        best = int(np.argmax(logits))
        print(f"{prompt!r}: {ids.shape[1]} tokens, first {tok.decode([best])!r} {logits[best]:.5f}")
    where = FIXTURES / "smollm2"
    where.mkdir(exist_ok=True)
    save_file(out, where / "logits.safetensors", metadata=meta)


main()
