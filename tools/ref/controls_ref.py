"""Maps of the further cells of causal tracing (severed states, single heads, re-embedding, paths from head to head, two
constraints corrupted at once) on tests/fixtures/tiny-gqa, by llava_plain.py in float64, one forward pass after another.

    python tools/ref/controls_ref.py            writes tests/fixtures/trace-controls/maps.safetensors

Severed states (Meng et al. 2022, figure 3): the hidden state behind layer l is put back at a row, the row's MLP (or
attention) outputs of all later layers are those of the run that is patched. Paths (Wang et al. 2023): see `path`.
"""
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from common import FIXTURES, IMAGE, preprocess, read_json, save_states, sha256
from llava_plain import Plain
from trace_ref import Item

PROMPT = "USER: <image>\nWhat is the {} of {}? ASSISTANT:"
WORDS = ("capital", "this country")
OTHERS = ("people", "the flag")
RECEIVER = (2, 1)  # layer, head


class Runs:
    def __init__(self, plain, pixels, target):
        self.plain, self.pixels, self.target = plain, pixels, target
        text = plain.text
        self.heads, self.kv = text["num_attention_heads"], text["num_key_value_heads"]
        self.hd = text["head_dim"] or text["hidden_size"] // self.heads
        self.layers = text["num_hidden_layers"]

    def run(self, ids, puts=()):
        """puts: (site name, rows, columns or None, values [T, d]): rows of a state overwritten."""
        def edit(name, t):
            for site, rows, cols, values in puts:
                if site == name:
                    t[rows, cols if cols is not None else slice(None)] = \
                        values[rows, cols if cols is not None else slice(None)]
        return self.plain.run(ids, self.pixels, edit=edit)

    def p(self, states):
        return float(states["logits"][-1].softmax(-1)[self.target])

    def head(self, h):
        return slice(h * self.hd, (h + 1) * self.hd)

    def severed(self, ids, base, source, layer, row, site):
        puts = [(f"decoder.{layer}.resid_post", row, None, source[f"decoder.{layer}.resid_post"])]
        for k in range(layer + 1, self.layers):
            puts.append((f"decoder.{k}.{site}", row, None, base[f"decoder.{k}.{site}"]))
        return self.p(self.run(ids, puts))

    def path(self, ids, base, source, layer, head, row, part, direct):
        """The sender's output at a row, everything that attention does later as in base; what then arrives at the
        receiver's q, k or v at this row is put into a fresh run. part None: the logits of the first run."""
        end = self.layers if part is None else RECEIVER[0]
        rows = slice(row, None)
        puts = [(f"decoder.{layer}.head_out", row, self.head(head), source[f"decoder.{layer}.head_out"])]
        for k in range(layer + 1, end):
            puts.append((f"decoder.{k}.attn_out", rows, None, base[f"decoder.{k}.attn_out"]))
        for k in range(layer, end) if direct else ():
            puts.append((f"decoder.{k}.mlp_out", rows, None, base[f"decoder.{k}.mlp_out"]))
        probe = self.run(ids, puts)
        if part is None:
            return self.p(probe)
        l, h = RECEIVER
        site = f"decoder.{l}.{part}"
        group = h if part == "q" else h // (self.heads // self.kv)
        return self.p(self.run(ids, [(site, row, self.head(group), probe[site])]))


def grid(steps, rows, f):
    return np.array([[f(s, r) for r in rows] for s in steps])


def maps(runs, ids, base, source, rows):
    out, layers, heads = {}, range(runs.layers), range(runs.heads)
    for name, site in (("no_mlp", "mlp_out"), ("no_attn", "attn_out")):
        out[name] = grid(layers, rows, lambda l, r: runs.severed(ids, base, source, l, r, site))
    both = [(l, h) for l in layers for h in heads]
    out["head"] = grid(both, rows, lambda s, r: runs.p(runs.run(
        ids, [(f"decoder.{s[0]}.head_out", r, runs.head(s[1]), source[f"decoder.{s[0]}.head_out"])])))
    out["embed"] = grid([0], rows, lambda s, r: runs.p(runs.run(
        ids, [("decoder.embed", r, None, source["decoder.embed"])])))
    before = [s for s in both if s[0] < RECEIVER[0]]
    for part in "qkv":
        out["path." + part] = grid(before, rows, lambda s, r: runs.path(ids, base, source, *s, r, part, False))
    out["path.v.direct"] = grid(before, rows, lambda s, r: runs.path(ids, base, source, *s, r, "v", True))
    last = rows[-1:]
    out["path.out"] = grid(both, last, lambda s, r: runs.path(ids, base, source, *s, r, None, False))
    out["path.out.direct"] = grid(both, last, lambda s, r: runs.path(ids, base, source, *s, r, None, True))
    return out


def main():
    folder, out = FIXTURES / "tiny-gqa", FIXTURES / "trace-controls"
    plain = Plain(folder, torch.float64)
    pixels = preprocess(Image.open(folder / "picture.png"), read_json(folder / "preprocessor_config.json"))
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    item = Item(tok, PROMPT.format(WORDS[0], "[" + WORDS[1] + "]"), 16, IMAGE)
    changed = [item.expand(PROMPT.format(*w))[0] for w in ((WORDS[0], OTHERS[1]), OTHERS)]
    assert all(len(c) == len(item.ids) for c in changed), [len(c) for c in changed]
    clean = plain.run(item.ids, pixels)
    runs = Runs(plain, pixels, int(clean["logits"][-1].argmax()))
    rows = item.positions
    keep = {"positions": rows, "target": [runs.target], "p_clean": np.array([runs.p(clean)])}
    for name, ids in zip(("one", "two"), changed):
        corrupt = runs.run(ids)
        keep[f"p_corrupted.{name}"] = np.array([runs.p(corrupt)])
        keep[f"rows.{name}"] = [i for i, (a, b) in enumerate(zip(item.ids, ids)) if a != b]
        for k, m in maps(runs, ids, corrupt, clean, rows).items():
            keep[f"{name}.{k}"] = m
        if name == "one":
            for k, m in maps(runs, item.ids, clean, corrupt, rows).items():
                keep[f"noise.{k}"] = m
    out.mkdir(exist_ok=True)
    for k, m in keep.items():
        if k.startswith(("one.", "two.", "noise.")):
            base = keep["p_clean"] if k.startswith("noise.") else keep["p_corrupted." + k[:3]]
            print(k, m.shape, "largest effect %.2e" % np.abs(m - base).max())
    save_states(out / "maps.safetensors", keep, {"prompt": PROMPT, "words": list(WORDS), "others": list(OTHERS),
                                                 "model_sha256": sha256(folder / "model.safetensors")})


if __name__ == "__main__":
    main()
