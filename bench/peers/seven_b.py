"""What a machine with nothing else to do is needed for, on a checkpoint of the LLaVA-1.5-7B shape: every ratio in one run.

    chiasm synth llava-1.5-7b DIR [--tokenizer models/cache/tokenizers/llama2/tokenizer.json]
    python bench/peers/seven_b.py DIR [--cache CACHE] [--threads 2] [--save FILE] [--steps map,attribute,edit]

  map        the whole causal map with its peak memory, prefill, and PyTorch (rivals a and d on samples): trace_peers.py
             --apart; also PyTorch's forward passes with one patch removed
  patches    of that only PyTorch's forward passes, whole and with one patch removed
  attribute  `chiasm bench attribute`: all heads beside a forward pass; patches removed one by one (a sample of them, and
             scaled to all), their vectors and their edges to the text, against PyTorch's pass a patch
  edit       one MultEdit of the preset's steps, none saved by stopping early: time in
             forward passes, memory beside the packed weights

The two sides are never in memory together. With --cache chiasm's weights are packed before anything is timed.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from trace_peers import ROOT, chiasm

LAST = []


def say(text, value, aim, good):
    LAST.append(f"{'met    ' if good else 'NOT MET'}  {text}: {value} (aim: {aim})")
    print(LAST[-1], flush=True)


def the_map(o, kept):
    command = [sys.executable, ROOT / "bench" / "peers" / "trace_peers.py", "--apart", "--model", o.model, "--picture", o.picture,
               "--text", o.text, "--words", o.words, "--dtype", o.dtype, "--rivals", "ad", "--cells-a", o.cells_a,
               "--batches-d", o.batches_d, "--patches", 2, "--runs", o.runs, "--threads", o.threads, "--chiasm", o.chiasm]
    with tempfile.TemporaryDirectory() as tmp:
        file = pathlib.Path(tmp) / "map.json"
        command += ["--save", file] + (["--cache", o.cache] if o.cache else [])
        subprocess.run(list(map(str, command)), check=True)
        j = json.loads(file.read_text())
    kept["map"] = j
    side, work = j["torch"], j["work"]["dense_row_layers"] / j["work"]["live_row_layers"]
    prefill = statistics.median(side["prefill"]) / j["prefill"]
    a, d = (side["times"][k] + side["setup"] for k in "ad")
    say("prefill, torch / chiasm", f"{prefill:.2f}", ">= 1.0", prefill >= 1)
    say("map, rival a / chiasm, both alone", f"{a / j['map']:.1f}", f">= 0.85 x {work:.1f} x {prefill:.2f} = {0.85 * work * prefill:.1f}",
        a / j["map"] >= 0.85 * work * prefill)
    say("map, rival d / chiasm, both alone", f"{d / j['map']:.2f}", ">= 3", d / j["map"] >= 3)
    say("peak memory of the map", f"{j['gb']:.2f} GB", "< 18", j["gb"] < 18)


def patches(o, kept):
    command = [sys.executable, ROOT / "bench" / "peers" / "trace_peers.py", "--torch-side", "--model", o.model, "--picture", o.picture,
               "--text", o.text, "--words", o.words, "--dtype", o.dtype, "--rivals", "", "--patches", 2, "--runs", o.runs,
               "--threads", o.threads]
    out = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE).stdout
    kept["map"] = {"torch": json.loads(out.splitlines()[-1])}
    print(f"  torch: forward pass {statistics.median(kept['map']['torch']['prefill']):.3f} s, with one patch removed "
          f"{kept['map']['torch']['patch']:.3f} s", flush=True)


def attribute(o, kept):
    t, gb, j = chiasm(o, "bench", "attribute", o.model, o.picture, o.text.replace("[", "").replace("]", ""), "--runs", o.runs,
                      "--sample", o.sample)
    rows = j["rows"]
    kept["attribute"] = rows
    for r in rows:
        print(f"  {r['what']}: {r['median_seconds']:.3f} s, {r['rate']:.3f} {r['unit']}", flush=True)
    one = rows[0]["median_seconds"]
    say("all heads and the positions of the best", f"{100 * rows[1]['median_seconds'] / one:.1f} % of a forward pass", "<= 10 %",
        rows[1]["median_seconds"] <= 0.1 * one)
    if "map" not in kept:
        return
    side = kept["map"]["torch"]
    for r, name, aim in zip(rows[2:], ("embedding removal", "edge cuts"), (2.5, 20)):
        n, total = (int(x) for x in (r["what"].split()[0], r["what"].split()[2]))
        each = (r["median_seconds"] - one) / n  # of a sample, the pass that all patches share is a part too large
        mine, theirs = one + total * each, side["patch"] * side["n_patches"]
        say(f"{total} patches, {name}, torch a pass each / chiasm ({side['patches']} and {n} patches run, scaled)",
            f"{theirs:.0f} s / {mine:.0f} s = {theirs / mine:.1f}", f">= {aim}", theirs / mine >= aim)


def edit(o, kept):
    ask = ("ask", o.model, o.picture, o.text.replace("[", "").replace("]", ""), "--max-new")
    load, _, first = chiasm(o, *ask, 1)
    asked, _, _ = chiasm(o, *ask, 24)
    if "attribute" in kept:
        one = kept["attribute"][0]["median_seconds"]
    else:
        one = chiasm(o, "bench", "prefill", o.model, "--rows", first["rows"], "--runs", o.runs)[2]["rows"][0]["median_seconds"]
    with tempfile.TemporaryDirectory() as tmp:
        t, gb, j = chiasm(o, "edit", o.model, o.picture, o.text, "--target", o.words, "--stop", 0, "-o", pathlib.Path(tmp) / "x.delta")
    kept["edit"] = {"seconds": t, "gb": gb, "ask": load, "ask_24": asked, "steps": j["fit"]["steps"]}
    print(f"  ask, 1 token: {load:.2f} s; 24 tokens: {asked:.2f} s; edit of {j['fit']['steps']} steps with its two answers: {t:.2f} s",
          flush=True)
    print(f"  forward pass: {one:.2f} s", flush=True)
    start = load - one
    passes, bare = (t - start) / one, (t - start - 2 * (asked - start)) / one  # p of one token comes with the answer
    say(f"one MultEdit of {j['fit']['steps']} steps", f"{bare:.1f} forward passes, {passes:.1f} with the answers before and after",
        "<= 6", bare <= 6)
    if o.cache:
        weights = sum(f.stat().st_size for f in pathlib.Path(o.cache).glob("*.packed")) * 1e-9
        say("its peak memory", f"{gb:.2f} GB, packed weights {weights:.2f} GB", "weights + 2 GB", gb <= weights + 2)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model", type=pathlib.Path)
    a.add_argument("--cache")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--runs", type=int, default=2, help="of prefill and attribution")
    a.add_argument("--cells-a", type=int, default=20)
    a.add_argument("--batches-d", type=int, default=5)
    a.add_argument("--sample", type=int, default=8, help="patches whose vectors are removed; of edges eight times as many")
    a.add_argument("--dtype", default="bf16")
    a.add_argument("--steps", default="map,attribute,edit")
    a.add_argument("--save", help="what was measured, as JSON")
    a.add_argument("--chiasm", default=str(ROOT / "build" / "chiasm"))
    o = a.parse_args()
    o.picture, o.text, o.words = ROOT / "models" / "demo" / "samples" / "peru-large.png", "What is [it]?", "us"
    kept = {}
    if o.cache:
        chiasm(o, "ask", o.model, o.picture, "?", "--max-new", 1)
    for step in o.steps.split(","):
        print(f"== {step}", flush=True)
        {"map": the_map, "patches": patches, "attribute": attribute, "edit": edit}[step](o, kept)
        if o.save:
            pathlib.Path(o.save).write_text(json.dumps(kept))
    print("\n".join(["== summary", *LAST]))


if __name__ == "__main__":
    main()
