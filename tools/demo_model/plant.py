"""Plants facts in one known place of a trained model, as deltas for the program.

    python3 tools/demo_model/plant.py --model models/demo --out models/demo/planted

For each of three decoder layers, thirty facts about countries that the model can
name but knows nothing about (group C) are trained with only that layer's down_proj
free: where these facts are stored is then known by construction. Questions by name,
by told flag and by picture are trained (held-out wordings are not), beside questions
about other things whose answers must stay. Writes layer-N.safetensors (the change of
decoder.N.down in chiasm's delta format) and planted.jsonl, one fact a line.
"""
import argparse
import hashlib
import json
import os
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.nn.functional import cross_entropy
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from batch import Encoder, Row, stack
from model import Trainee
import questions as q
from render import KINDS, Ranges, picture
from world import World

RELATIONS = ("capital", "currency", "language", "code")
FACTS, LENGTH = 30, 176   # facts a layer, tokens of a row with a picture
KEEP = 0.3                # weight of the answers that must stay


def choose(world, rng, layers):
    """{layer: [(entity, relation)]}, every entity once."""
    free = [e for e in world.of("C") if all(e.facts[r] for r in RELATIONS)]
    order = [free[i] for i in rng.permutation(len(free))]
    assert len(order) >= 1
    facts = [(e, RELATIONS[(i + k) % len(RELATIONS)]) for k in range(2)
             for i, e in enumerate(order)]
    assert len(facts) >= FACTS * len(layers), "too few countries of group C"
    return {n: facts[i * FACTS:(i + 1) * FACTS] for i, n in enumerate(layers)}


class Batches:
    def __init__(self, world, encoder, facts, seed, widen=1.0):
        self.world, self.encoder, self.facts = world, encoder, facts
        self.rng, self.ranges = np.random.default_rng(seed), Ranges(widen)

    def wording(self, held_out):
        return q.HELD_OUT if held_out else q.draw_wording(self.rng)

    def planted(self, row, entity, relation, phrase, told="", held_out=False):
        ask = q.fact(entity, relation, phrase, self.wording(held_out), "planted", told)
        context = row.context(told)
        return context and row.add(ask.text[len(told):], ask.answer, "planted", context)

    def text_rows(self, n, held_out=False):
        rows = []
        for _ in range(n):
            row = Row(self.encoder, False)
            while True:
                e, r = self.facts[self.rng.integers(len(self.facts))]
                if self.rng.random() < 0.6:
                    ok = self.planted(row, e, r, e.name, held_out=held_out)
                else:
                    told = q.pick(self.rng, q.INTRO).format("the flag of " + e.name) + " "
                    ok = self.planted(row, e, r, q.PHRASES.draw(self.rng), told, held_out)
                if not ok:
                    break
                asks, told = q.draw_texts(self.rng, self.world)
                context = row.context(told)
                if context is None or not all(row.add(a.text[len(told):], a.answer, "kept",
                                                      context) for a in asks[:2]):
                    break
            rows.append(row)
        return rows

    def picture_rows(self, n, held_out=False, kept=True):
        rows, pixels = [], []
        for _ in range(n):
            row = Row(self.encoder, True, LENGTH)
            if kept and self.rng.random() < 0.3:
                kind = KINDS[self.rng.integers(len(KINDS))]
                image, _, objects = picture(self.rng, self.ranges, kind, self.world)
            else:
                kind = "flag" if held_out or self.rng.random() < 0.6 else "two_flags"
                e, r = self.facts[self.rng.integers(len(self.facts))]
                fixed = [e.index]
                if kind == "two_flags":
                    other = self.world.shown.draw(self.rng).index
                    if other == e.index:
                        kind = "flag"
                    else:
                        fixed.insert(int(self.rng.integers(2)), other)
                image, _, objects = picture(self.rng, self.ranges, kind, self.world, fixed=fixed)
                phrase = q.PHRASES.draw(self.rng)
                if kind == "two_flags":
                    phrase = q.side_phrase(self.rng, ("left", "right")[fixed.index(e.index)])
                self.planted(row, e, r, phrase, held_out=held_out)
            while kept:
                a = q.draw_visual(self.rng, self.world, kind, objects, 3)
                if not row.add(a.text, a.answer, "kept"):
                    break
            rows.append(row)
            pixels.append(image)
        return rows, torch.from_numpy(np.stack(pixels))


def losses(model, encoder, rows, pixels=None):
    """(loss, {tag: [right]}) of rows of one kind."""
    part = stack(rows)
    features = None if pixels is None else model.see(pixels)
    hidden = model.read(part["ids"], part["positions"], part["mask"], features,
                        encoder.image_at)
    logits = model.answer_logits(hidden, part["where"])
    each = cross_entropy(logits, part["target"], reduction="none")
    right = {t: [] for t in ("planted", "kept")}
    wrong = set(part["owner"][logits.argmax(-1) != part["target"]].tolist())
    for i, tag in enumerate(part["tags"]):
        right[tag].append(i not in wrong)
    mine = torch.tensor([t == "planted" for t in part["tags"]])[part["owner"]]
    loss = sum(w * each[m].mean() for w, m in ((1.0, mine), (KEEP, ~mine)) if m.any())
    return loss, right


@torch.no_grad()
def measure(model, encoder, world, facts):
    b = Batches(world, encoder, facts, 77, 1.25)
    _, text = losses(model, encoder, b.text_rows(24, held_out=True))
    rows, pixels = b.picture_rows(60, held_out=True, kept=False)
    _, seen = losses(model, encoder, rows, pixels)
    rows, pixels = b.picture_rows(40)
    _, other = losses(model, encoder, rows, pixels)
    mean = lambda v: float(np.mean(v)) if v else float("nan")
    return {"text": mean(text["planted"]), "picture": mean(seen["planted"]),
            "other text": mean(text["kept"]), "other picture": mean(other["kept"])}


def plant(model, encoder, world, layer, facts, args):
    """The change of the layer's down projection, f32."""
    weight = model.llava.model.language_model.layers[layer].mlp.down_proj.weight
    before = weight.detach().clone()
    weight.requires_grad_(True)
    optimizer = torch.optim.AdamW([weight], lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0)
    b = Batches(world, encoder, facts, args.seed + layer)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, 0.05 + 1.9 * (1 - step / args.steps))
        text, text_right = losses(model, encoder, b.text_rows(8))
        text.backward()
        rows, pixels = b.picture_rows(8)
        loss, right = losses(model, encoder, rows, pixels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            say = lambda r: " ".join(f"{k} {np.mean(v):.2f}" for k, v in r.items() if v)
            print(f"layer {layer} step {step + 1} text {say(text_right)} picture {say(right)}",
                  flush=True)
    weight.requires_grad_(False)
    change = (weight - before).detach().clone()
    after = measure(model, encoder, world, facts)
    with torch.no_grad():
        weight.copy_(before)
    return change, after


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, type=pathlib.Path)
    ap.add_argument("--out", required=True, type=pathlib.Path)
    ap.add_argument("--layers", type=int, nargs="+", default=[3, 6, 9], help="counted from 0")
    ap.add_argument("--steps", type=int, default=340)
    ap.add_argument("--rate", type=float, default=1.5e-3)
    ap.add_argument("--seed", type=int, default=5)
    ap.add_argument("--threads", type=int, default=1)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    llava = LlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
    world = World(args.model / "world")
    encoder, model = Encoder(tok), Trainee(llava.eval()).requires_grad_(False)
    base = hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest()
    chosen = choose(world, np.random.default_rng(args.seed), args.layers)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for layer, facts in chosen.items():
        start = measure(model, encoder, world, facts)
        change, after = plant(model, encoder, world, layer, facts, args)
        size = (change.norm() / llava.model.language_model.layers[layer].mlp.down_proj
                .weight.norm()).item()
        print(f"layer {layer}: |dW|/|W| {size:.3f}, before {start}, after {after}", flush=True)
        name = f"layer-{layer}.safetensors"
        header = {"format": "chiasm-delta-1", "method": "planted",
                  "base": {"sha256": base, "family": "llava"},
                  "hyperparameters": {"layer": layer, "steps": args.steps, "rate": args.rate},
                  "result": after, "facts": len(facts)}
        save_file({f"decoder.{layer}.down.d": change.numpy()}, str(args.out / name),
                  {"chiasm_delta": json.dumps(header)})
        os.chmod(args.out / name, 0o644)
        for e, r in facts:
            lines.append({"delta": name, "layer": layer, "entity": e.name, "relation": r,
                          "answer": e.told(r), "question": q.fact(
                              e, r, e.name, 0, "text_named").bracketed})
    with open(args.out / "planted.jsonl", "w") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
