"""The same causal map by chiasm and by PyTorch, on the same checkpoint and picture, both sides in this run.

    python bench/peers/trace_peers.py [--runs 5] [--threads 2] [--question 0] [--chiasm build/chiasm]

The map: mlp, attention and hidden state x all layers x all rows from the last picture row on, f32. Rivals, all in
transformers (sdpa attention, inference mode, only the last row's logits):
  a  one forward pass per cell, forward hooks
  b  the published script's batch of 3 (clean, corrupted, patched) per cell
  c  32 cells a batch
  d  keys and values of the rows before the constraint computed once, 32 suffixes a batch
chiasm's time is the whole process: start, loading, first pass, map, no files written. The rivals' is the map alone, with the
model loaded and warmed up. Rivals a and b run on every n-th cell and are scaled (n is printed). Runs are interleaved, the
median is taken. The indirect effects of d must agree with chiasm's to 1e-5, or the run fails.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from transformers import DynamicCache, LlavaForConditionalGeneration

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "ref"))
import trace_ref  # noqa: E402  (Item, embed: prompt to rows)
from common import preprocess, read_json  # noqa: E402

QUESTIONS = [("peru.png", "What is the capital of [this country]?", "Spain"),
             ("japan.png", "What is the capital of [Peru]?", "Chad")]


class Rig:
    """Hooks that overwrite one row of a component's output, per batch element."""

    def __init__(self, model):
        self.model, self.edits, self.record, self.shift = model, {}, None, 0
        for i, block in enumerate(model.model.language_model.layers):
            for site, m in (("attn", block.self_attn.o_proj), ("mlp", block.mlp.down_proj), ("hidden", block)):
                m.register_forward_hook(self.hook(site, i))

    def hook(self, site, layer):
        def fire(module, args, y):
            t = y[0] if isinstance(y, tuple) else y
            if self.record is not None:
                self.record[site, layer] = t.clone()
            for row, position, value in self.edits.get((site, layer), ()):
                t[row, position - self.shift] = value
            return y
        return fire

    def run(self, x, edits=None, record=None, cache=None, shift=0):
        self.edits, self.record, self.shift = edits or {}, record, shift
        position = torch.arange(shift, shift + x.shape[1])[None].expand(x.shape[0], -1)
        out = self.model(inputs_embeds=x, past_key_values=cache, position_ids=position, use_cache=cache is not None,
                         logits_to_keep=1).logits[:, -1]
        self.edits, self.record = {}, None
        return out


class Work:
    def __init__(self, model, tok, demo, question):
        picture, text, words = QUESTIONS[question]
        self.picture, self.text, self.words, self.rig = picture, text, words, Rig(model)
        pixels = preprocess(Image.open(demo / "samples" / picture), read_json(demo / "preprocessor_config.json"))
        image = model.config.image_token_id
        n = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
        item = trace_ref.Item(tok, f"USER: <image>\n{text} ASSISTANT:", n, image)
        self.clean = trace_ref.embed(model, item.ids, pixels)
        ids = list(item.ids)
        for r, t in zip(item.span, item.replaced(words)):
            ids[r] = t
        self.bad = trace_ref.embed(model, ids, pixels)
        self.first, self.positions = item.span[0], item.positions
        self.source = {}
        logits = self.rig.run(self.clean, record=self.source)
        self.target = int(logits[0].argmax())
        self.p_bad = float(self.p(self.rig.run(self.bad))[0])
        layers = len(model.model.language_model.layers)
        self.cells = [(s, l, p) for s in ("mlp", "attn", "hidden") for l in range(layers) for p in self.positions]

    def p(self, logits):
        return logits.double().softmax(-1)[:, self.target]

    def edits(self, cells, first_row=0):
        e = {}
        for i, (s, l, p) in enumerate(cells):
            e.setdefault((s, l), []).append((first_row + i, p, self.source[s, l][0, p]))
        return e

    def one_by_one(self, step):
        return [float(self.p(self.rig.run(self.bad, self.edits([c])))[0]) for c in self.cells[::step]]

    def batch_of_3(self, step):
        x = torch.cat([self.clean, self.bad, self.bad])
        return [float(self.p(self.rig.run(x, self.edits([c], 2)))[2]) for c in self.cells[::step]]

    def batched(self, size=32):
        out = []
        for at in range(0, len(self.cells), size):
            some = self.cells[at:at + size]
            out += self.p(self.rig.run(self.bad.expand(len(some), -1, -1), self.edits(some))).tolist()
        return out

    def suffixes(self, size=32):
        """Rows before the constraint are the same in every run: their keys and values are made once."""
        start = min(self.first, self.positions[-1])
        base = DynamicCache()
        self.rig.run(self.clean[:, :start], cache=base)
        out = []
        for at in range(0, len(self.cells), size):
            some = self.cells[at:at + size]
            inside = [c for c in some if c[2] >= start]  # cells before the constraint change nothing
            p = {}
            if inside:
                cache = DynamicCache()
                for i, layer in enumerate(base.layers):
                    cache.update(layer.keys.expand(len(inside), -1, -1, -1), layer.values.expand(len(inside), -1, -1, -1), i)
                x = self.bad[:, start:].expand(len(inside), -1, -1)
                p = dict(zip(inside, self.p(self.rig.run(x, self.edits(inside), cache=cache, shift=start)).tolist()))
            out += [p.get(c, self.p_bad) for c in some]
        return out


def chiasm(binary, demo, w, threads):
    command = [binary, "trace", str(demo), str(demo / "samples" / w.picture), w.text, "--corrupt", f"words:{w.words}", "--dtype", "f32",
               "--threads", str(threads), "--json"]
    t = time.perf_counter()
    out = subprocess.run(command, check=True, capture_output=True).stdout
    t = time.perf_counter() - t
    maps = json.loads(out)["maps"]
    return t, [p for s in ("mlp", "attn", "hidden") for row in maps[s]["own"]["p"] for p in row]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--runs", type=int, default=5)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--question", type=int, default=0)
    a.add_argument("--sample", type=int, default=8, help="rivals a and b run every n-th cell")
    a.add_argument("--chiasm", default=str(ROOT / "build" / "chiasm"))
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    demo = ROOT / "models" / "demo"
    model = LlavaForConditionalGeneration.from_pretrained(demo, dtype=torch.float32, attn_implementation="sdpa").eval()
    tok = Tokenizer.from_file(str(demo / "tokenizer.json"))
    with torch.inference_mode():
        w = Work(model, tok, demo, o.question)
        rivals = {"a  one forward per cell": lambda: w.one_by_one(o.sample), "b  batch of 3 per cell": lambda: w.batch_of_3(o.sample),
                  "c  32 cells a batch": w.batched, "d  shared prefix, 32 suffixes": w.suffixes}
        worst = max(abs(x - y) for x, y in zip(w.suffixes(), chiasm(o.chiasm, demo, w, o.threads)[1], strict=True))
        times = {k: [] for k in rivals} | {"chiasm": []}
        for _ in range(o.runs):
            for k, f in rivals.items():
                t = time.perf_counter()
                f()
                scale = len(w.cells) / len(w.cells[::o.sample]) if k[0] in "ab" else 1
                times[k].append((time.perf_counter() - t) * scale)
                times["chiasm"].append(chiasm(o.chiasm, demo, w, o.threads)[0])
    mine = statistics.median(times["chiasm"])
    print(f"{len(w.cells)} cells, f32, {o.threads} threads, {o.runs} interleaved runs, medians; torch {torch.__version__}, "
          f"transformers {transformers.__version__}; a and b on every {o.sample}-th cell, scaled")
    print(f"largest difference of an effect to rival d: {worst:.1e}")
    print(f"{'chiasm trace, whole process':32} {mine:8.3f} s")
    for k in rivals:
        t = statistics.median(times[k])
        print(f"{k:32} {t:8.3f} s   {t / mine:7.1f} x")
    if worst > 1e-5:
        sys.exit("the maps do not agree")


if __name__ == "__main__":
    main()
