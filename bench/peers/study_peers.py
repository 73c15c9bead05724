"""Items a minute of a study of causal maps: chiasm, and PyTorch doing the same items, both sides in this run.

    python bench/peers/study_peers.py ITEMS.jsonl --model models/demo [--items 3] [--runs 3] [--threads 1]
    python bench/peers/study_peers.py KNOWN.jsonl --model FILE.gguf --noise 10 --window 6 --items 2 --runs 2 --sample 24 --cpu

ITEMS: chiasm's own items (`chiasm data convert`). With a picture: the corruption is the item's substitute, values are put back
from the item's own clean run and from the donor's, windows of one layer. With --noise: so many samples of noise on the bracketed
tokens, no donor; transformers reads the file with `gguf` and `accelerate`. mlp and attn x all layers x all tokens from the
constraint on (before it nothing changes).

chiasm: `chiasm study trace`, its own seconds for the items (loading left out; the greedy answer, two cells of several
tokens and SQLite are in it). PyTorch, in transformers (sdpa, inference mode, only the last row's logits, loading left out):
  one     one forward pass for each cell, with all rows
  shared  keys and values of the rows before the constraint computed once, 32 suffixes a batch
Runs are interleaved and the median is taken. `one` runs on every so many cells that --sample are left for an item, `shared`
on as many batches as hold --sample cells or more, and both are scaled. With pictures the effects at the last token must agree with
chiasm's to 1e-5; with noise those of the first item's computed cells, under the noise that `chiasm trace` drew for it.
--cpu: CPU seconds of either process instead, chiasm's with loading and start; for a machine that does other things.
"""
import argparse
import json
import pathlib
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import DynamicCache

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "ref"))
import trace_ref  # noqa: E402
from common import preprocess, read_json  # noqa: E402

BATCH, LAST = 32, 8  # LAST: the last token's place among the roles of a stored map


class Rig:
    """Hooks that record component outputs or overwrite rows of them; keys and values of a prefix can be given."""

    def __init__(self, model, layers):
        self.model, self.edits, self.record, self.shift = model, {}, None, 0
        for i, block in enumerate(layers):
            for site, module in (("attn", block.self_attn.o_proj), ("mlp", block.mlp.down_proj)):
                module.register_forward_hook(self.hook(site, i))

    def hook(self, site, layer):
        def fire(module, args, y):
            if self.record is not None:
                self.record[site, layer] = y.clone()
            for rows, position, value in self.edits.get((site, layer), ()):
                y[rows, position - self.shift] = value
            return y
        return fire

    def run(self, x, edits=None, record=None, cache=None, shift=0):
        self.edits, self.record, self.shift = edits or {}, record, shift
        position = torch.arange(shift, shift + x.shape[1])[None].expand(x.shape[0], -1)
        out = self.model(inputs_embeds=x, past_key_values=cache, position_ids=position, use_cache=cache is not None,
                         logits_to_keep=1).logits[:, -1]
        self.edits, self.record = {}, None
        return out


class Peer:
    def __init__(self, o):
        self.o, self.text, self.noise = o, o.model.suffix == ".gguf", {}
        self.clock = time.process_time if o.cpu else time.perf_counter
        torch.set_num_threads(o.threads)
        if self.text:
            from transformers import AutoModelForCausalLM, AutoTokenizer
            where = {"pretrained_model_name_or_path": str(o.model.parent), "gguf_file": o.model.name}
            self.model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
            self.tok = AutoTokenizer.from_pretrained(**where)._tokenizer
            layers = self.model.model.layers
        else:
            from tokenizers import Tokenizer
            from transformers import LlavaForConditionalGeneration
            self.model = LlavaForConditionalGeneration.from_pretrained(o.model, dtype=torch.float32).eval()
            self.tok = Tokenizer.from_file(str(o.model / "tokenizer.json"))
            self.cfg = read_json(o.model / "preprocessor_config.json")
            layers = self.model.model.language_model.layers
        self.layers, self.rig = len(layers), Rig(self.model, layers)

    def pixels(self, path):
        return preprocess(Image.open(path).convert("RGB"), self.cfg)

    def prepare(self, j):
        """(runs that are patched, sources, target, rows) of an item: what every method needs once."""
        if self.text:
            item = trace_ref.Item(self.tok, j["question"], 1)
            clean = trace_ref.embed(self.model, item.ids)
            bad = clean.repeat(self.o.noise, 1, 1)
            noise = self.noise.get(j["question"])
            if noise is None:
                sd = 3 * float(self.model.get_input_embeddings().weight.std())
                noise = torch.randn(self.o.noise, len(item.span), clean.shape[2]) * sd
            bad[:, item.span] += noise
        else:
            image = self.model.config.image_token_id
            n = (self.model.config.vision_config.image_size // self.model.config.vision_config.patch_size) ** 2
            item = trace_ref.Item(self.tok, f"USER: <image>\n{j['question']} ASSISTANT:", n, image)
            clean = trace_ref.embed(self.model, item.ids, self.pixels(j["image"]))
            bad = clean.clone()
            words = torch.as_tensor(item.replaced(j["constraints"][0]["substitutes"][0]["words"]))
            bad[0, item.span] = self.model.get_input_embeddings()(words)
        sources = [{}]
        target = int(self.rig.run(clean, record=sources[0])[0].argmax())
        if not self.text:
            sources.append({})
            self.rig.run(trace_ref.embed(self.model, item.ids, self.pixels(j["donor"])), record=sources[1])
        self.p_bad = self.p(self.rig.run(bad), target).mean()
        first, rows = item.span[0], range(item.span[0], len(item.ids))
        cells = [(k, s, l, r) for k in range(len(sources)) for s in ("mlp", "attn") for l in range(self.layers) for r in rows]
        return bad, sources, target, first, cells

    def p(self, logits, target):
        return logits.double().softmax(-1)[:, target]

    def edits(self, cells, sources, n):
        e = {}
        for i, (k, s, l, r) in enumerate(cells):
            lo, hi = trace_ref.window(l, self.o.window, "rome", self.layers)
            for m in range(lo, hi + 1):
                e.setdefault((s, m), []).append((slice(i * n, i * n + n), r, sources[k][s, m][0, r]))
        return e

    def one(self, j):
        start = self.clock()
        bad, sources, target, first, cells = self.prepare(j)
        some = cells[::max(1, len(cells) // self.o.sample)]
        once = self.clock()
        for c in some:
            self.p(self.rig.run(bad, self.edits([c], sources, bad.shape[0])), target).mean()
        now = self.clock()
        return once - start + (now - once) * len(cells) / len(some), {}

    def shared(self, j):
        start = self.clock()
        bad, sources, target, first, cells = self.prepare(j)
        n = bad.shape[0]
        base = DynamicCache()
        if first:
            self.rig.run(bad[:1, :first], cache=base)
        per = max(1, BATCH // n)
        batches = [cells[at:at + per] for at in range(0, len(cells), per)]
        some = batches[::max(1, len(cells) // max(self.o.sample, per))] if self.o.sample < len(cells) else batches
        once, p = self.clock(), {}
        for batch in some:
            cache = DynamicCache()
            for i, layer in enumerate(base.layers):
                cache.update(*(t.expand(len(batch) * n, -1, -1, -1) for t in (layer.keys, layer.values)), i)
            x = bad[:, first:].repeat(len(batch), 1, 1)
            got = self.p(self.rig.run(x, self.edits(batch, sources, n), cache=cache, shift=first), target)
            p.update(zip(batch, (got.view(-1, n).mean(1) - self.p_bad).tolist()))
        now = self.clock()
        return once - start + (now - once) * len(cells) / sum(map(len, some)), p


def chiasm(o, items):
    """Seconds of the study, and its maps of the own value."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as tmp:
        data = pathlib.Path(tmp, "items.jsonl")
        data.write_text("".join(json.dumps(j) + "\n" for j in items))
        corrupt, null = (f"noise:3s,samples={o.noise}", "1") if o.noise else ("substitute", "0")
        subprocess.run([o.chiasm, "study", "trace", data, "--model", o.model, "--corrupt", corrupt, "--sites", "mlp,attn",
                        "--windows", str(o.window), "--one-direction", "--null-draws", null, "--threads", str(o.threads),
                        "--quiet", "-o", f"{tmp}/run"], check=True, stdout=subprocess.DEVNULL)
        db = sqlite3.connect(f"{tmp}/run/run.sqlite")
        seconds = db.execute("select sum(seconds) from session").fetchone()[0]
        if o.cpu:
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        kind = f"trace/item/{corrupt}/mlp/w{o.window}/own/p"
        maps = [np.frombuffer(v, "<f4").reshape(-1, 11) for v, in
                db.execute("select payload from result where kind = ? order by seq", (kind,))]
        done = db.execute("select count(*) from item where status = 'ok'").fetchone()[0]
        db.close()
    if done != len(items) or len(maps) != len(items):
        sys.exit(f"chiasm did {done} of {len(items)} items")
    return seconds, maps


def drawn(o, j):
    """The noise that `chiasm trace` draws for a question, and its effects {(site, layer, row): effect}."""
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run([o.chiasm, "trace", o.model, j["question"], "--raw", "--corrupt", f"noise:3s,samples={o.noise}", "--window",
                        str(o.window), "--sites", "mlp,attn", "--threads", str(o.threads), "-q", "-o", f"{tmp}/t"],
                       check=True, stdout=subprocess.DEVNULL)
        t = load_file(f"{tmp}/t/trace.safetensors")
    effects = {s: t[f"{s}.own.p"] - t["p_corrupted"] for s in ("mlp", "attn")}
    return torch.as_tensor(t["noise"]), {(s, l, int(r)): float(m[l, i]) for s, m in effects.items()
                                         for l in range(len(m)) for i, r in enumerate(t["rows"])}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("data", type=pathlib.Path)
    ap.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "demo")
    ap.add_argument("--chiasm", default=str(ROOT / "build" / "chiasm"))
    ap.add_argument("--items", type=int, default=3)
    ap.add_argument("--runs", type=int, default=3)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--noise", type=int, default=0)
    ap.add_argument("--window", type=int, default=1)
    ap.add_argument("--sample", type=int, default=10**9)
    ap.add_argument("--cpu", action="store_true")
    o = ap.parse_args()
    items = [json.loads(line) for line in o.data.read_text().splitlines()][:o.items]
    with torch.inference_mode():
        peer, seconds, worst = Peer(o), {"chiasm": [], "shared": [], "one": []}, 0.0
        same, checked = {}, set()
        if o.noise:
            peer.noise[items[0]["question"]], same = drawn(o, items[0])
        peer.shared(items[0])  # warmed up
        for _ in range(o.runs):
            s, maps = chiasm(o, items)
            seconds["chiasm"].append(s)
            for name in ("shared", "one"):
                total = 0.0
                for j, m in zip(items, maps):
                    t, p = getattr(peer, name)(j)
                    total += t
                    last = max((r for _, _, _, r in p), default=0)
                    if o.noise and j is items[0]:
                        checked |= p.keys()
                        worst = max([worst, *(abs(v - same[c[1:]]) for c, v in p.items())])
                    for (k, site, l, r), v in p.items():
                        if k == 0 and site == "mlp" and r == last and not o.noise:
                            worst = max(worst, abs(v - float(m[l, LAST])))
                seconds[name].append(total)
            print("run:", {k: round(v[-1], 1) for k, v in seconds.items()}, file=sys.stderr)
    best = {k: statistics.median(v) for k, v in seconds.items()}
    for k, v in best.items():
        print(f"{k:8} {60 * len(items) / v:9.2f} items a minute   {best[k] / best['chiasm']:7.2f} x chiasm's time   "
              f"({', '.join(f'{t:.2f}' for t in seconds[k])} s for {len(items)} items)")
    where = f"of {len(checked)} cells of the first item" if o.noise else "at the last token"
    print(f"effects {where}: largest difference {worst:.1e}")
    if worst > 1e-5:
        sys.exit("the two sides differ")


if __name__ == "__main__":
    main()
