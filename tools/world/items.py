"""Makes evaluation items: pictures, questions, answers and their controls.

    python3 tools/world/items.py --model models/demo --seed 20 --out models/demo/eval

Renderer ranges are 25 % wider than in training (render.Ranges). The fields of
items.jsonl are described in docs/world.md.
"""
import argparse
import json
import pathlib

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

import questions as q
from render import COLOR_NAMES, KINDS, Ranges, SHAPES, World, picture

PICTURES = {"flag": 266, "two_flags": 80, "shapes": 100, "flag_shapes": 60}
TEXTS = {"text_named": 320, "text_described": 260}
HELD_OUT_SHARE = 0.15


class Slots:
    """Which words can stand for others in a prompt, token for token."""

    def __init__(self, tok):
        self.tok = tok

    def prompt(self, question, words, pictured):
        head = "USER: <image>\n" if pictured else "USER: "
        return head + question.before, question.after + " ASSISTANT:"

    def swap(self, question, words, pictured):
        """True where `words` fill the constraint's slots and change every one."""
        head, tail = self.prompt(question, words, pictured)
        a = self.tok.encode(head + question.constraint + tail)
        b = self.tok.encode(head + words + tail)
        if len(a.ids) != len(b.ids):
            return False
        lo, hi = len(head), len(head) + len(question.constraint)
        span = [s < hi and e > lo and e > s for s, e in a.offsets]
        return all((x != y) == inside for x, y, inside in zip(a.ids, b.ids, span))

    def first(self, answer):
        return self.tok.encode(" " + answer, add_special_tokens=False).ids[0]


def candidates(rng, world, question, objects):
    """Words of the same kind as the constraint, each with the answer they ask for."""
    if question.group in ("color", "text_described"):
        given = "shape" if question.relation == "color" else "color"
        names = {"shape": SHAPES, "color": COLOR_NAMES}
        return [(names[given][o[given]], names[question.relation][o[question.relation]])
                for o in objects if given in o]
    if question.group == "two_flags":
        other = {"left": "right", "right": "left"}[question.constraint]
        shown = next(o for o in objects if o["side"] == other)
        answer = world.countries[shown["flag"]][question.relation]
        return [(other, answer)] if answer else []
    shown = {o["flag"] for o in objects if "flag" in o}
    order = rng.permutation(len(world.countries))
    free = [world.countries[i] for i in order if i not in shown]
    return [(c["name"], c[question.relation]) for c in free if c[question.relation]]


def draw_item_wording(rng):
    return q.HELD_OUT if rng.random() < HELD_OUT_SHARE else q.draw_wording(rng)


def visual_phrase(rng):
    """"this country" in half of the questions, for the measured paraphrase."""
    return "this country" if rng.random() < 0.5 else q.VISUAL[rng.integers(len(q.VISUAL))]


def picture_questions(rng, world, kind, objects):
    """The questions asked of one evaluation picture."""
    flags = [o for o in objects if "flag" in o]
    shapes = [o for o in objects if "shape" in o]
    out = []

    def relations(country, n, skip=()):
        names = [r for r in q.known(country) if r not in skip]
        return [names[i] for i in rng.permutation(len(names))[:n]]

    def named(skip=("name",)):
        away = {o["flag"] for o in flags}
        free = [c for i, c in enumerate(world.countries) if i not in away]
        country = free[rng.integers(len(free))]
        out.append(q.fact(country, relations(country, 1, skip)[0], country["name"],
                          draw_item_wording(rng), "named_over"))

    def scene(n):
        for i in rng.permutation(len(shapes))[:n]:
            relation = "color" if rng.random() < 0.7 else "shape"
            out.append(q.about_shape(shapes[i], relation, draw_item_wording(rng), "color"))

    if kind in ("flag", "flag_shapes"):
        country = world.countries[flags[0]["flag"]]
        for r in relations(country, 3 if kind == "flag" else 2):
            out.append(q.fact(country, r, visual_phrase(rng), draw_item_wording(rng), "fact"))
    if kind == "two_flags":
        for _ in range(3):
            side = flags[rng.integers(2)]
            country = world.countries[side["flag"]]
            out.append(q.fact(country, relations(country, 1)[0],
                              q.side_phrase(rng, side["side"]), draw_item_wording(rng),
                              "two_flags"))
    if kind != "flag_shapes":
        named()
    if shapes:
        scene(3 if kind == "shapes" else 1)
    return out


def text_questions(rng, world):
    for group, n in TEXTS.items():
        for _ in range(n):
            if group == "text_named":
                country = world.countries[rng.integers(len(world.countries))]
                names = [r for r in q.known(country) if r != "name"]
                yield q.fact(country, names[rng.integers(len(names))], country["name"],
                             draw_item_wording(rng), group), []
            else:
                objects, told = q.described_scene(rng)
                relation = "color" if rng.random() < 0.6 else "shape"
                yield q.about_shape(objects[0 if rng.random() < .3 else -1], relation,
                                    draw_item_wording(rng), group, told), objects


def item(rng, world, slots, question, objects, image):
    """One JSONL record; substitutes are checked token by token."""
    pictured = image is not None
    swap = (None, None)
    for words, answer in candidates(rng, world, question, objects):
        if (slots.first(answer) != slots.first(question.answer)
                and slots.swap(question, words, pictured)):
            swap = (words, answer)
            break
    paraphrase = q.PARAPHRASE.get(question.constraint) if question.group == "fact" else None
    return {"id": None, "image": image, "donor": None, "question": question.bracketed,
            "answer": question.answer, "group": question.group,
            "relation": question.relation, "entity": question.entity,
            "wording": question.wording, "held_out": question.wording == q.HELD_OUT,
            "substitute": swap[0], "substitute_answer": swap[1], "paraphrase": paraphrase}


def give_donors(rng, items, kinds):
    """Another picture of the same kind, about another entity."""
    by_kind = {}
    for it in items:
        if it["image"]:
            by_kind.setdefault(kinds[it["image"]], []).append(it)
    for it in items:
        if not it["image"]:
            continue
        pool = [o for o in by_kind[kinds[it["image"]]] if o["image"] != it["image"]
                and o["entity"] != it["entity"]]
        it["donor"] = pool[rng.integers(len(pool))]["image"]


def make(world, tok, seed, scale=1.0):
    """Items and their pictures ({path: pixels}); `scale` makes a smaller set."""
    rng, ranges, slots = np.random.default_rng(seed), Ranges(1.25), Slots(tok)
    items, pictures, kinds = [], {}, {}
    turn = rng.permutation(len(world.countries))
    for kind in KINDS:
        for i in range(round(PICTURES[kind] * scale)):
            shown = None
            if kind == "flag":   # every country as often
                shown = [turn[i % len(turn)]]
            pixels, _, objects = picture(rng, ranges, kind, world, shown)
            name = f"img/{len(pictures):04d}.png"
            pictures[name], kinds[name] = pixels, kind
            for question in picture_questions(rng, world, kind, objects):
                items.append(item(rng, world, slots, question, objects, name))
    texts = list(text_questions(rng, world))
    for question, objects in texts[::max(1, round(1 / scale))]:
        items.append(item(rng, world, slots, question, objects, None))
    give_donors(rng, items, kinds)
    for i, it in enumerate(items):
        it["id"] = f"f{i:04d}"
    return items, pictures


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, type=pathlib.Path,
                    help="folder with world/ and tokenizer.json")
    ap.add_argument("--out", required=True, type=pathlib.Path)
    ap.add_argument("--seed", type=int, default=20)
    args = ap.parse_args()
    world = World(args.model / "world")
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    items, pictures = make(world, tok, args.seed)
    (args.out / "img").mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(args.out / name, optimize=True)
    with open(args.out / "items.jsonl", "w") as f:
        for it in items:
            f.write(json.dumps(it, ensure_ascii=False) + "\n")
    groups = {}
    for it in items:
        g = groups.setdefault(it["group"], [0, 0])
        g[0] += 1
        g[1] += it["substitute"] is not None
    print(f"{len(items)} items on {len(pictures)} pictures, seed {args.seed}")
    for name, (n, swaps) in groups.items():
        print(f"{name}: {n} items, {swaps} with a substitute")


if __name__ == "__main__":
    main()
