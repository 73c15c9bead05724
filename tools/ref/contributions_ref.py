"""Attention contributions a(j -> i) = A[i, j] W_O v_j of a transformers model, every head and pair of rows, in float64.

    python tools/ref/contributions_ref.py        tests/fixtures/contributions/*.safetensors

head: |a[l,h](j -> i)| [layers, heads, to, from]; sum: |sum over h of a(j -> i)| [layers, to, from]; group: sum over all
sources and heads [layers, to, d]. from: every row; to: some text rows.
"""
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from attribute_ref import Model, expand
from common import FIXTURES, preprocess, read_json, save_states, sha256


def contributions(folder, ids, pixels, to):
    m = Model(folder)
    with torch.no_grad():
        m.run(ids, pixels)
        out = {"head": [], "sum": [], "group": []}
        for l in range(len(m.layers)):
            A = m.s[f"decoder.{l}.pattern"]  # [heads, to, from]
            a = torch.zeros(m.H, len(to), m.T, len(m.g), dtype=torch.float64)
            for h in range(m.H):
                w = m.o(l, h, m.v[l][:, h])  # W_O v_j [from, d]
                for n, i in enumerate(to):
                    a[h, n] = A[h, i][:, None] * w
            whole = a.sum((0, 2)) + m.matrix(l, "o")[1]
            assert torch.allclose(whole, m.A[l][to], atol=1e-4, rtol=1e-4), (l, (whole - m.A[l][to]).abs().max())
            out["head"].append(a.norm(dim=-1))
            out["sum"].append(a.sum(0).norm(dim=-1))
            out["group"].append(a.sum((0, 2)))
    out = {k: torch.stack(v) for k, v in out.items()}
    out["to"] = np.array(to, np.int32)
    return out


def main():
    for name, prompt, picture in (
            ("tiny-gqa", "USER: <image>\nWhat is the capital of this country? ASSISTANT:", "picture.png"),
            ("tiny-phi", "What is the capital of this country?", None)):
        folder = FIXTURES / name
        pixels, rows = None, 0
        if picture:
            pixels = preprocess(Image.open(folder / picture), read_json(folder / "preprocessor_config.json"))
            v = read_json(folder / "config.json")["vision_config"]
            rows = (v["image_size"] // v["patch_size"]) ** 2
        ids = expand(folder, Tokenizer.from_file(str(folder / "tokenizer.json")), prompt, rows)
        T = len(ids)
        path = FIXTURES / "contributions" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        out = contributions(folder, ids, pixels, [T - 7, T - 4, T - 1])
        meta = {"prompt": prompt, "regenerate": "python tools/ref/contributions_ref.py",
                "model_sha256": sha256(folder / "model.safetensors")}
        if picture:
            meta["picture"] = f"tests/fixtures/{name}/{picture}"
        save_states(path, out, meta)
        print(f"{path}: {path.stat().st_size // 1024} KiB, {T} rows")


if __name__ == "__main__":
    main()
