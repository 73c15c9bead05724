"""Measures an exported model on evaluation items, in f32 from its bf16 weights.

    python3 tools/demo_model/evaluate.py --model models/demo
    python3 tools/demo_model/evaluate.py --model models/demo --dev-seed 999

Without --dev-seed the committed items are read; with it, other items are drawn
in memory from that seed, for use while training. An answer counts as right
when greedy decoding gives exactly its tokens and then </s>: under teacher
forcing that is the same as every token being the most probable one.
"""
import argparse
import json
import pathlib
from collections import defaultdict

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from batch import Encoder, Row, stack
from model import Trainee
from render import World
import items as world_items


def questions_of(item):
    """(kind, question, answer, watched answer) for each run that an item needs."""
    before, rest = item["question"].split("[")
    words, after = rest.split("]")
    yield "plain", before + words + after, item["answer"], item["answer"]
    if item["substitute"]:
        yield ("swap", before + item["substitute"] + after, item["substitute_answer"],
               item["answer"])
    if item["paraphrase"]:
        yield "same", before + item["paraphrase"] + after, item["answer"], item["answer"]


def pack(items, encoder):
    """Rows of questions that share a picture, and which picture each row needs."""
    groups = defaultdict(list)
    for i, item in enumerate(items):
        groups[item["image"]].append(i)
    rows = []
    for image, members in groups.items():
        row = Row(encoder, image is not None)
        for i in members:
            for kind, text, answer, watched in questions_of(items[i]):
                tag = (i, kind, watched)
                if not row.add(text, answer, tag):
                    rows.append((image, row))
                    row = Row(encoder, image is not None)
                    assert row.add(text, answer, tag), "question longer than a row"
        rows.append((image, row))
    return sorted(rows, key=lambda r: r[0] is None)


@torch.no_grad()
def run(model, encoder, items, load):
    """{(item, kind): (exact, p of the watched answer's first token, first token right)}"""
    out, rows = {}, pack(items, encoder)
    for at in range(0, len(rows), 24):
        part = rows[at:at + 24]
        batch = stack([row for _, row in part])
        pictures = [load(image) for image, _ in part if image]
        features = None
        if pictures:
            features = model.see(torch.from_numpy(np.stack(pictures)))
        hidden = model.read(batch["ids"], batch["positions"], batch["mask"], features,
                            encoder.image_at)
        logits = model.answer_logits(hidden, batch["where"])
        hit = (logits.argmax(-1) == batch["target"]).tolist()
        owner = batch["owner"].tolist()
        for k, (i, kind, watched) in enumerate(batch["tags"]):
            first = owner.index(k)
            last = first + owner.count(k)
            p = logits[first].softmax(-1)[encoder.words(" " + watched)[0]].item()
            out[i, kind] = (all(hit[first:last]), p, hit[first])
    return out


def mean(values):
    return float(np.mean(values)) if len(values) else float("nan")


def summary(items, out):
    """Rows of (name, count, value): accuracies first, then the constraint tests."""
    pick = defaultdict(list)
    for i, item in enumerate(items):
        exact, p, _ = out[i, "plain"]
        for key in (item["group"], f"{item['group']}/{item['relation']}",
                    "held-out wording" if item["held_out"] else "trained wording"):
            pick["exact " + key].append(exact)
        pick["p " + item["group"]].append(p)
        if item["substitute"]:
            _, swapped, top = out[i, "swap"]
            for key in (item["group"], "all"):
                pick["p drop on substitution " + key].append(p - swapped)
                pick["counterfactual on top " + key].append(top)
        if item["paraphrase"]:
            pick["|p change| on paraphrase"].append(abs(p - out[i, "same"][1]))
    return [(k, len(v), mean(v)) for k, v in sorted(pick.items())]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, type=pathlib.Path)
    ap.add_argument("--items", type=pathlib.Path, help="default MODEL/eval/items.jsonl")
    ap.add_argument("--dev-seed", type=int, help="draw other items with this seed")
    ap.add_argument("--scale", type=float, default=0.5, help="size of the drawn set")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--wrong", type=int, default=0, help="print this many wrong items")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    llava = LlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
    model = Trainee(llava.eval())
    if args.dev_seed is not None:
        items, pictures = world_items.make(World(args.model / "world"), tok, args.dev_seed,
                                           args.scale)
        load = pictures.__getitem__
    else:
        path = args.items or args.model / "eval/items.jsonl"
        items = [json.loads(line) for line in open(path)]
        load = lambda name: np.asarray(Image.open(path.parent / name).convert("RGB"))
    out = run(model, Encoder(tok), items, load)
    for name, n, value in summary(items, out):
        print(f"{name:42s} {n:5d} {value:8.4f}")
    wrong = [it for i, it in enumerate(items) if not out[i, "plain"][0]]
    for it in wrong[:args.wrong]:
        print(it["group"], it["image"], it["entity"], it["question"], "->", it["answer"])


if __name__ == "__main__":
    main()
