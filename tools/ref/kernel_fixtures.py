"""Values of activations and rotary tables as torch computes them, for tests/test_kernel_rows.c.

Run from the repository root:  python tools/ref/kernel_fixtures.py
Made with torch 2.13.0 and transformers 5.23.0 (formulas of LlamaRotaryEmbedding, default and linear).
"""
import os

import torch

OUT = "tests/fixtures/kernel"
NOTE = "/* made by tools/ref/kernel_fixtures.py with torch %s */\n" % torch.__version__.split("+")[0]


def hexf(x):
    return float(x).hex() + "f"


def activations():
    torch.manual_seed(1)
    x = torch.cat([torch.linspace(-12, 12, 97), torch.randn(63) * 2, torch.tensor([0.0, -1e-6, 1e-6, 0.9217, -0.9217])])
    cols = [
        torch.nn.functional.silu(x),
        torch.nn.functional.gelu(x),
        torch.nn.functional.gelu(x, approximate="tanh"),
        x * torch.sigmoid(1.702 * x),
        torch.relu(x),
    ]
    with open(os.path.join(OUT, "act.inc"), "w") as f:
        f.write(NOTE)
        for i in range(len(x)):
            f.write("{%s, {%s}},\n" % (hexf(x[i]), ", ".join(hexf(c[i]) for c in cols)))


def rope():
    rows = []
    for theta, factor, half in [(10000.0, 1.0, 64), (10000.0, 4.0, 16), (500000.0, 1.0, 40), (1000000.0, 1.0, 64)]:
        dim = 2 * half
        inv = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
        inv = inv / factor
        for pos in [1, 7, 577, 1023, 4095]:
            freqs = (inv[None, :, None] @ torch.tensor([[[float(pos)]]])).transpose(1, 2)[0, 0]
            for i in range(0, half, 5):
                rows.append((theta, factor, pos, half, i, freqs.cos()[i], freqs.sin()[i]))
    with open(os.path.join(OUT, "rope.inc"), "w") as f:
        f.write(NOTE)
        for r in rows:
            f.write("{%.1f, %.1f, %d, %d, %d, %s, %s},\n" % (*r[:5], hexf(r[5]), hexf(r[6])))


if __name__ == "__main__":
    os.makedirs(OUT, exist_ok=True)
    activations()
    rope()
