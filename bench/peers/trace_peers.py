"""The same causal map by chiasm and by PyTorch, on the same checkpoint and picture, both sides in this run.

    python bench/peers/trace_peers.py [--runs 5] [--threads 2] [--question 0] [--chiasm build/chiasm]
    python bench/peers/trace_peers.py --apart --model DIR --picture FILE --text "What is [it]?" --words us --dtype bf16 \
        --rivals ad --cells-a 20 --batches-d 5 --cache CACHE      any LLaVA checkpoint that does not fit into memory twice

The map: mlp, attention and hidden state x all layers x all rows from the last picture row on. Rivals, all in
transformers (sdpa attention, inference mode, only the last row's logits):
  a  one forward pass per cell, forward hooks
  b  the published script's batch of 3 (clean, corrupted, patched) per cell
  c  32 cells a batch
  d  keys and values of the rows before the constraint computed once, 32 suffixes a batch; cells before the constraint,
     which change nothing, are not run at all
Both sides make the whole map with the model loaded and warmed up: the picture's rows, the clean and the corrupted run, all
cells. chiasm's time is given twice: that (`chiasm bench trace` on the same prompt), and the whole process (start, loading,
hashing, map; no files written). Rivals a and b run --cells-a cells, d --batches-d batches, evenly spread, and are scaled;
what was run is printed. In f32 the effects of d must agree with chiasm's to 1e-5, or the run fails.

--cpu counts seconds of the processor instead of the clock's, on a machine that is busy with other things; with --threads 1,
since threads that wait for others count too. chiasm's map alone is then 10 maps in a process less none.

Without --apart the two sides take turns, and medians are taken. With it chiasm runs first and then PyTorch, in a process of
its own; the prefill of the same prompt is timed on both sides, and the ratio to a is set beside 0.85 x (ratio of rows x
layers) x (ratio of prefill).
"""
import argparse
import json
import os
import pathlib
import resource
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


def spread(n, count):
    """count of n places, evenly spread; all if count is 0 or there are no more."""
    return list(range(n)) if count <= 0 or count >= n else [(2 * i + 1) * n // (2 * count) for i in range(count)]


class Work:
    def __init__(self, model, tok, folder, picture, text, words):
        self.model, self.picture, self.text, self.words, self.rig = model, picture, text, words, Rig(model)
        self.pixels = preprocess(Image.open(picture).convert("RGB"), read_json(folder / "preprocessor_config.json"))
        image = model.config.image_token_id
        self.n_image = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
        item = trace_ref.Item(tok, f"USER: <image>\n{text} ASSISTANT:", self.n_image, image)
        self.ids, self.bad_ids = item.ids, list(item.ids)
        for r, t in zip(item.span, item.replaced(words)):
            self.bad_ids[r] = t
        self.first_image = self.ids.index(image)
        self.first, self.positions = item.span[0], item.positions
        self.setup()
        layers = len(model.model.language_model.layers)
        self.cells = [(s, l, p) for s in ("mlp", "attn", "hidden") for l in range(layers) for p in self.positions]
        self.start = min(self.first, self.positions[-1])
        self.inside = [c for c in self.cells if c[2] >= self.start]  # cells before the constraint change nothing

    def setup(self):
        """What every rival needs once: the picture's rows, the clean and the corrupted run."""
        self.clean = trace_ref.embed(self.model, self.ids, self.pixels)
        self.bad = self.clean.clone()
        self.bad[0, self.first:] = self.model.get_input_embeddings()(torch.as_tensor(self.bad_ids))[self.first:]
        self.source = {}
        logits = self.rig.run(self.clean, record=self.source)
        self.target = int(logits[0].argmax())
        self.p_bad = float(self.p(self.rig.run(self.bad))[0])

    def prefill(self):
        self.rig.run(trace_ref.embed(self.model, self.ids, self.pixels))

    def without_patch(self, i):
        x = self.clean.clone()
        x[0, self.first_image + i] = x[0, self.first_image:self.first_image + self.n_image].mean(0)
        self.rig.run(x)

    def p(self, logits):
        return logits.double().softmax(-1)[:, self.target]

    def edits(self, cells, first_row=0):
        e = {}
        for i, (s, l, p) in enumerate(cells):
            e.setdefault((s, l), []).append((first_row + i, p, self.source[s, l][0, p]))
        return e

    def one_by_one(self, cells):
        return [float(self.p(self.rig.run(self.bad, self.edits([c])))[0]) for c in cells]

    def batch_of_3(self, cells):
        x = torch.cat([self.clean, self.bad, self.bad])
        return [float(self.p(self.rig.run(x, self.edits([c], 2)))[2]) for c in cells]

    def batched(self, size):
        out = []
        for at in range(0, len(self.cells), size):
            some = self.cells[at:at + size]
            out += self.p(self.rig.run(self.bad.expand(len(some), -1, -1), self.edits(some))).tolist()
        return out

    def prefix(self):
        """Keys and values of the rows before the constraint: the same in every run."""
        base = DynamicCache()
        self.rig.run(self.clean[:, :self.start], cache=base)
        return base

    def suffixes(self, base, cells):
        """p of one batch of cells behind the shared prefix."""
        cache = DynamicCache()
        for i, layer in enumerate(base.layers):
            cache.update(layer.keys.expand(len(cells), -1, -1, -1), layer.values.expand(len(cells), -1, -1, -1), i)
        x = self.bad[:, self.start:].expand(len(cells), -1, -1)
        return self.p(self.rig.run(x, self.edits(cells), cache=cache, shift=self.start)).tolist()


clock = time.perf_counter


def seconds(f):
    t = clock()
    f()
    return clock() - t


class Rivals:
    """Each method runs a rival once: seconds, scaled to the whole map. `ran` tells what was run, p_d what d found."""

    def __init__(self, w, o):
        self.w, self.o, self.p_d = w, o, {}
        self.some = [w.cells[i] for i in spread(len(w.cells), o.cells_a)]
        batches = [w.inside[at:at + o.batch] for at in range(0, len(w.inside), o.batch)]
        self.batches, self.share = [batches[i] for i in spread(len(batches), o.batches_d)], len(w.inside)
        self.share /= sum(len(b) for b in self.batches)
        self.ran = {"a": f"{len(self.some)} of {len(w.cells)} cells", "b": f"{len(self.some)} of {len(w.cells)} cells",
                    "c": "whole", "d": f"prefix and {len(self.batches)} of {len(batches)} batches of {o.batch} "
                                       f"({len(w.inside)} cells from the constraint on)"}
        self.name = {"a": "one forward per cell", "b": "batch of 3 per cell", "c": f"{o.batch} cells a batch",
                     "d": f"shared prefix, {o.batch} suffixes"}

    def a(self):
        return seconds(lambda: self.w.one_by_one(self.some)) * len(self.w.cells) / len(self.some)

    def b(self):
        return seconds(lambda: self.w.batch_of_3(self.some)) * len(self.w.cells) / len(self.some)

    def c(self):
        return seconds(lambda: self.w.batched(self.o.batch))

    def d(self):
        t = clock()
        base = self.w.prefix()
        once = clock() - t
        for batch in self.batches:
            self.p_d.update(zip(batch, self.w.suffixes(base, batch)))
        return once + (clock() - t - once) * self.share


def options(o):
    return ["--dtype", o.dtype, "--threads", str(o.threads), "--json", "--quiet"] + (["--cache", o.cache] if o.cache else [])


def chiasm(o, *words):
    """Seconds, peak memory in GB and JSON of a chiasm command."""
    t = time.perf_counter()
    process = subprocess.Popen([o.chiasm, *map(str, words), *options(o)], stdout=subprocess.PIPE)
    out = process.stdout.read()
    usage = os.wait4(process.pid, 0)
    if usage[1]:
        sys.exit(f"chiasm {words[0]} failed")
    t = time.perf_counter() - t if clock is time.perf_counter else usage[2].ru_utime + usage[2].ru_stime
    return t, usage[2].ru_maxrss / 1048576 * 1.073741824, json.loads(out)


def whole(o):
    """Seconds of the whole process, peak memory, p of the answer by cell, and the work."""
    t, gb, j = chiasm(o, "trace", o.model, o.picture, o.text, "--corrupt", f"words:{o.words}")
    p = {(s, l, r["row"] if isinstance(r, dict) else r): v for s in ("mlp", "attn", "hidden")
         for l, row in enumerate(j["maps"][s]["own"]["p"]) for r, v in zip(j["rows"], row)}
    return t, gb, p, j["work"]


def alone(o):
    if clock is time.perf_counter:
        return chiasm(o, "bench", "trace", o.model, o.picture, o.text, "--runs", "1")[2]["rows"][0]["median_seconds"]
    few, many = (chiasm(o, "bench", "trace", o.model, o.picture, o.text, "--runs", n)[0] for n in (1, 11))
    return (many - few) / 10


def load(o):
    torch.set_num_threads(o.threads)
    dtype = torch.float32 if o.dtype == "f32" else torch.bfloat16
    model = LlavaForConditionalGeneration.from_pretrained(o.model, dtype=dtype, attn_implementation="sdpa").eval()
    return Work(model, Tokenizer.from_file(str(o.model / "tokenizer.json")), o.model, o.picture, o.text, o.words)


def torch_side(o):
    """Everything that PyTorch does for --apart, as JSON on the last line."""
    with torch.inference_mode():
        w = load(o)
        r = Rivals(w, o)
        w.prefill()  # as chiasm's, the first one warms up
        prefill = [seconds(w.prefill) for _ in range(o.runs)]
        setup = seconds(w.setup)
        times = {k: getattr(r, k)() for k in o.rivals}
        patches = spread(w.n_image, o.patches) if o.patches else []
        patch = seconds(lambda: [w.without_patch(i) for i in patches]) / max(1, len(patches))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1048576 * 1.073741824
    print(json.dumps({"prefill": prefill, "setup": setup, "times": times, "ran": {k: r.ran[k] for k in o.rivals},
                      "name": r.name, "patch": patch, "patches": len(patches), "n_patches": w.n_image, "gb": rss,
                      "cells": len(w.cells), "rows": len(w.ids), "p_d": [[list(k), v] for k, v in r.p_d.items()]}))


def apart(o):
    process, gb, mine, work = whole(o)
    rows = max(p for _, _, p in mine) + 1
    print(f"chiasm trace, whole process: {process:.2f} s, peak memory {gb:.2f} GB, {len(mine)} cells", flush=True)
    rate = chiasm(o, "bench", "prefill", o.model, "--rows", rows, "--runs", o.runs)[2]["rows"][0]
    print(f"chiasm {rate['what']}: {rate['median_seconds']:.3f} s", flush=True)
    start = chiasm(o, "ask", o.model, o.picture, o.text.translate({91: None, 93: None}), "--max-new", 1)[0]
    sweep = process - max(0, start - rate["median_seconds"])
    print(f"chiasm, the map alone: {sweep:.2f} s (less {process - sweep:.2f} s of start and loading)", flush=True)
    out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--torch-side"], check=True, stdout=subprocess.PIPE).stdout
    side = json.loads(out.splitlines()[-1])
    prefill = statistics.median(side["prefill"])
    dense, live = work["dense_row_layers"], work["live_row_layers"]
    ratio = prefill / rate["median_seconds"]
    print(f"torch prefill of {side['rows']} rows: {prefill:.3f} s; peak memory {side['gb']:.2f} GB")
    print(f"ratio of prefill (a): {ratio:.2f}    ratio of rows x layers: {dense / live:.1f} ({dense} / {live})")
    print(f"0.85 x their product: {0.85 * ratio * dense / live:.1f}")
    worst = max((abs(v - mine[tuple(k)]) for k, v in side["p_d"]), default=0)
    print(f"largest difference of an effect to rival d: {worst:.1e}")
    result = {"process": process, "map": sweep, "gb": gb, "work": work, "prefill": rate["median_seconds"], "torch": side}
    for k, t in side["times"].items():
        t += side["setup"]
        print(f"{k}  {side['name'][k]:34} {t:10.2f} s {t / process:8.1f} x the process {t / sweep:8.1f} x the map   "
              f"({side['ran'][k]}, scaled)")
    if o.save:
        pathlib.Path(o.save).write_text(json.dumps(result))


def turns(o):
    with torch.inference_mode():
        w = load(o)
        r = Rivals(w, o)
        _, _, mine, work = whole(o)
        times = {k: [] for k in o.rivals}
        process, sweep, setup = [], [], []
        for _ in range(o.runs):
            for k in o.rivals:
                setup.append(seconds(w.setup))
                times[k].append(getattr(r, k)())
                process.append(whole(o)[0])
                sweep.append(alone(o))
        base = w.prefix()
        for batch in r.batches if "d" not in o.rivals else []:
            r.p_d.update(zip(batch, w.suffixes(base, batch)))
    process, sweep, setup = statistics.median(process), statistics.median(sweep), statistics.median(setup)
    worst = max(abs(v - mine[k]) for k, v in r.p_d.items())
    print(f"{len(w.cells)} cells, {o.dtype}, {o.threads} threads, {o.runs} interleaved runs, medians of "
          f"{'CPU seconds' if o.cpu else 'seconds'}; torch {torch.__version__}, "
          f"transformers {transformers.__version__}")
    print(f"largest difference of an effect to rival d: {worst:.1e}; rows x layers: "
          f"{work['dense_row_layers'] / work['live_row_layers']:.1f} times less than one by one")
    print(f"{'':34} {'':10}   to the process  to the map alone")
    print(f"{'chiasm trace, whole process':34} {process:8.3f} s")
    print(f"{'chiasm, the map alone':34} {sweep:8.3f} s")
    for k in o.rivals:
        t = statistics.median(times[k]) + setup
        print(f"{k}  {r.name[k]:31} {t:8.3f} s   {t / process:12.1f} x {t / sweep:16.1f} x   ({r.ran[k]})")
    print(f"of each rival's time {setup:.3f} s are the picture's rows, the clean and the corrupted run")
    if o.dtype == "f32" and worst > 1e-5:
        sys.exit("the maps do not agree")


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--runs", type=int, default=5, help="of everything; with --apart of the prefill only")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--question", type=int, default=0)
    a.add_argument("--cells-a", type=int, default=48, help="cells that rivals a and b run, evenly spread; 0 = all")
    a.add_argument("--batches-d", type=int, default=0, help="batches that rival d runs, evenly spread; 0 = all")
    a.add_argument("--batch", type=int, default=32, help="cells a batch of rivals c and d")
    a.add_argument("--rivals", default="abcd")
    a.add_argument("--chiasm", default=str(ROOT / "build" / "chiasm"))
    a.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "demo")
    a.add_argument("--picture", type=pathlib.Path)
    a.add_argument("--text", help="with the constraint in brackets")
    a.add_argument("--words", help="as many tokens as the constraint")
    a.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    a.add_argument("--cache", help="chiasm's --cache")
    a.add_argument("--apart", action="store_true", help="one side after the other: for models that fit into memory once")
    a.add_argument("--patches", type=int, default=0, help="--apart: forward passes with one patch removed, timed too")
    a.add_argument("--save", help="--apart: write what was measured as JSON")
    a.add_argument("--torch-side", action="store_true", help=argparse.SUPPRESS)
    a.add_argument("--cpu", action="store_true", help="seconds of the processor, not of the clock")
    o = a.parse_args()
    if o.cpu:
        globals()["clock"] = time.process_time
    picture, text, words = QUESTIONS[o.question]
    o.picture, o.text, o.words = o.picture or o.model / "samples" / picture, o.text or text, o.words or words
    torch_side(o) if o.torch_side else apart(o) if o.apart else turns(o)


if __name__ == "__main__":
    main()
