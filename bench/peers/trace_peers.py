"""The same causal map by chiasm and by PyTorch, on the same checkpoint and picture, both sides in this run.

    python bench/peers/trace_peers.py [--runs 5] [--threads 2] [--question 0] [--chiasm build/chiasm]
    python bench/peers/trace_peers.py --model DIR --picture FILE --text "What is [this] ?" --words that --dtype bf16 \
        --rivals ad --sample 120 --sample-d 40 --batch 8 --runs 3 --cache CACHE      any LLaVA checkpoint

The map: mlp, attention and hidden state x all layers x all rows from the last picture row on. Rivals, all in
transformers (sdpa attention, inference mode, only the last row's logits):
  a  one forward pass per cell, forward hooks
  b  the published script's batch of 3 (clean, corrupted, patched) per cell
  c  32 cells a batch
  d  keys and values of the rows before the constraint computed once, 32 suffixes a batch
The rivals' time is the map alone, with the model loaded and warmed up. chiasm's is given twice: the whole process (start,
loading, hashing, map; no files written), and the map alone as the rivals', by `chiasm bench trace` on the same prompt.
Rivals a and b run on every --sample-th cell, d on every --sample-d-th, and are scaled (both are printed). Runs are
interleaved, the median is taken. In f32 the effects of d must agree with chiasm's to 1e-5, or the run fails.
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

QUESTIONS = [("peru.png", "What is the capital of [this country]?", "Kenya"),
             ("japan.png", "What is the capital of [Peru]?", "Kenya")]


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
    def __init__(self, model, tok, folder, picture, text, words):
        self.picture, self.text, self.words, self.rig = picture, text, words, Rig(model)
        pixels = preprocess(Image.open(picture).convert("RGB"), read_json(folder / "preprocessor_config.json"))
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

    def suffixes(self, size=32, step=1):
        """Rows before the constraint are the same in every run: their keys and values are made once."""
        cells = self.cells[::step]
        start = min(self.first, self.positions[-1])
        base = DynamicCache()
        self.rig.run(self.clean[:, :start], cache=base)
        out = []
        for at in range(0, len(cells), size):
            some = cells[at:at + size]
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


def options(o):
    return ["--dtype", o.dtype, "--threads", str(o.threads), "--json", "--quiet"] + (["--cache", o.cache] if o.cache else [])


def whole(o, w):
    """Seconds of the whole process, and p of the answer by cell."""
    command = [o.chiasm, "trace", str(o.model), str(w.picture), w.text, "--corrupt", f"words:{w.words}"] + options(o)
    t = time.perf_counter()
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    t = time.perf_counter() - t
    maps = json.loads(out)["maps"]
    return t, [p for s in ("mlp", "attn", "hidden") for row in maps[s]["own"]["p"] for p in row]


def alone(o, w):
    command = [o.chiasm, "bench", "trace", str(o.model), str(w.picture), w.text, "--runs", "1"] + options(o)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["rows"][0]["median_seconds"]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--runs", type=int, default=5)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--question", type=int, default=0)
    a.add_argument("--sample", type=int, default=8, help="rivals a and b run every n-th cell")
    a.add_argument("--sample-d", type=int, default=1, help="rival d runs every n-th cell")
    a.add_argument("--batch", type=int, default=32, help="cells a batch of rivals c and d")
    a.add_argument("--rivals", default="abcd")
    a.add_argument("--chiasm", default=str(ROOT / "build" / "chiasm"))
    a.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "demo")
    a.add_argument("--picture", type=pathlib.Path)
    a.add_argument("--text", help="with the constraint in brackets")
    a.add_argument("--words", help="as many tokens as the constraint")
    a.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    a.add_argument("--cache", help="chiasm's --cache")
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    dtype = torch.float32 if o.dtype == "f32" else torch.bfloat16
    model = LlavaForConditionalGeneration.from_pretrained(o.model, dtype=dtype, attn_implementation="sdpa").eval()
    tok = Tokenizer.from_file(str(o.model / "tokenizer.json"))
    picture, text, words = QUESTIONS[o.question]
    with torch.inference_mode():
        w = Work(model, tok, o.model, o.picture or o.model / "samples" / picture, o.text or text, o.words or words)
        rivals = {"a  one forward per cell": (o.sample, lambda: w.one_by_one(o.sample)),
                  "b  batch of 3 per cell": (o.sample, lambda: w.batch_of_3(o.sample)),
                  f"c  {o.batch} cells a batch": (1, lambda: w.batched(o.batch)),
                  f"d  shared prefix, {o.batch} suffixes": (o.sample_d, lambda: w.suffixes(o.batch, o.sample_d))}
        rivals = {k: v for k, v in rivals.items() if k[0] in o.rivals}
        mine = whole(o, w)[1][::o.sample_d]
        worst = max(abs(x - y) for x, y in zip(w.suffixes(o.batch, o.sample_d), mine, strict=True))
        times = {k: [] for k in rivals}
        process, sweep = [], []
        for _ in range(o.runs):
            for k, (step, f) in rivals.items():
                t = time.perf_counter()
                f()
                times[k].append((time.perf_counter() - t) * len(w.cells) / len(w.cells[::step]))
                process.append(whole(o, w)[0])
                sweep.append(alone(o, w))
    process, sweep = statistics.median(process), statistics.median(sweep)
    print(f"{len(w.cells)} cells, {o.dtype}, {o.threads} threads, {o.runs} interleaved runs, medians; torch {torch.__version__}, "
          f"transformers {transformers.__version__}; a and b on every {o.sample}-th cell, d on every {o.sample_d}-th, scaled")
    print(f"largest difference of an effect to rival d: {worst:.1e}")
    print(f"{'':32} {'':10}   to the process  to the map alone")
    print(f"{'chiasm trace, whole process':32} {process:8.3f} s")
    print(f"{'chiasm, the map alone':32} {sweep:8.3f} s")
    for k in rivals:
        t = statistics.median(times[k])
        print(f"{k:32} {t:8.3f} s   {t / process:12.1f} x {t / sweep:16.1f} x")
    if o.dtype == "f32" and worst > 1e-5:
        sys.exit("the maps do not agree")


if __name__ == "__main__":
    main()
