"""CPU seconds of one edit of a language model: chiasm, and PyTorch making the same edits, in turns, one thread a side.

    python bench/peers/edit_peers.py MODEL.gguf --moments M.safetensors [--set SET] [--layers 4-6] [--limit 4] [--runs 3]

The methods and settings are those of docs/studies/smollm2-editing/run.sh; MOMENTS come from `chiasm moments`. chiasm: `chiasm eval
edits --raw` on the first facts of the test, less the same with `--method none`. Both load the model and ask every question once,
after the edit or instead of it (what was said before is read from --method none's log), so that the difference is the edits alone,
the factored second moment among them. PyTorch: tools/ref/edit_text_ref.py, from the first forward pass to the changed weights; its
inverse of the second moment is not counted. p(target) after the edits must agree to 0.02.
Needs gguf and accelerate beside requirements.txt.
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "ref"))
import edit_text_ref as ref  # noqa: E402


def settings(method, lo, hi, moments):
    """chiasm's options, and the same for PyTorch"""
    mid = (lo + hi) // 2
    c = dict(method=method, lo=mid, hi=mid, steps=20, stop=0.05, decay=1e-3, clamp=10.0, kl=0.0, shrink=0.1, max_change=0.0,
             moments=moments, prefixes=[], lr=2e-3, lr_share=False)
    c["lambda"], c["lambda_share"] = 0.01, True
    options = ["--method", method, "--steps", "20", "--stop", "0.05"]
    if method == "ft":
        return [*options, "--preset", "unconstrained", "--layer", str(mid), "--lr", "2e-3"], c
    options += ["--decay", "1e-3", "--clamp", "10", "--shrink", "0.1", "--moments", moments]
    if method == "rome":
        return [*options, "--layer", str(mid), "--lr", "2z"], dict(c, lr=2.0, lr_share=True)
    return [*options, "--layer", f"{lo}-{hi}", "--lr", "0.2z", "--lambda", "0.01kk"], dict(c, lo=lo, hi=hi, lr=0.2, lr_share=True)


def ours(o, facts, options, log, before=None):
    """CPU seconds of one run, and its p(target)s"""
    log.unlink(missing_ok=True)
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # noqa: E731
    start = used()
    command = [o.chiasm, "eval", "edits", facts, "--model", o.model, "--raw", "--split", "test", "--threads", 1, "-q", "-o", log,
               *options, *(["--before", before] if before else [])]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return used() - start, {x["item"]: x["p_target"] for x in ref.read(log) if "item" in x}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("--moments", required=True)
    a.add_argument("--set", default=str(ROOT / "docs" / "studies" / "smollm2-editing" / "facts.jsonl"))
    a.add_argument("--layers", default="4-6")
    a.add_argument("--limit", type=int, default=4)
    a.add_argument("--runs", type=int, default=3)
    a.add_argument("--chiasm", default=str(ROOT / "build" / "chiasm"))
    o = a.parse_args()
    lo, hi = map(int, o.layers.split("-"))
    torch.set_num_threads(1)
    net = ref.Net(o.model)
    items = [x for x in ref.read(o.set) if x["split"] == "test"][:o.limit]
    mine, theirs, gap = {}, {}, 0
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        facts = tmp / "facts.jsonl"
        facts.write_text("".join(json.dumps(x) + "\n" for x in items))
        for run in range(o.runs):
            asked, _ = ours(o, facts, ["--method", "none"], tmp / "none.jsonl")
            for method in ("rome", "memit", "ft"):
                options, c = settings(method, lo, hi, o.moments)
                used, p = ours(o, facts, options, tmp / f"{method}.jsonl", tmp / "none.jsonl")
                made = [ref.edit(net, x, c) for x in items]
                mine.setdefault(method, []).append((used - asked) / len(items))
                theirs.setdefault(method, []).append(sum(x["cpu"] for x in made) / len(items))
                gap = max([gap] + [abs(p[x["item"]] - x["p_target"]) for x in made])
                print(f"run {run + 1} {method}: chiasm {mine[method][-1]:.2f} s, torch {theirs[method][-1]:.2f} s", flush=True)
    print(f"{len(items)} facts, medians of {o.runs} runs, CPU seconds of an edit on one thread; torch {torch.__version__}; "
          f"p(target) differs by {gap:.1g} at most")
    for method in mine:
        x, y = statistics.median(mine[method]), statistics.median(theirs[method])
        print(f"{method:6} chiasm {x:.2f} s, torch {y:.2f} s: {y / x:.2f} x")
    if gap > 0.02:
        sys.exit("the two sides do not make the same edits")


if __name__ == "__main__":
    main()
