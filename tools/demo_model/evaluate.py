"""Measures an exported model on questions drawn afresh, in f32 from its bf16 weights.

    python3 tools/demo_model/evaluate.py --model models/demo [--scale 0.3]

For use while training: pictures come from another seed and from renderer ranges
25 % wider than in training, and nothing is read but the world. Every country is
asked for every fact that it has, whether training contained it or not, by trained
and by held-out wordings. An answer counts as right when greedy decoding gives
exactly its tokens and then </s>: under teacher forcing that is the same as every
token being the most probable one. The model card is measured by the program on
the committed items instead (`make demo-eval`).
"""
import argparse
import pathlib
from collections import defaultdict

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from batch import Encoder, Row, stack
from model import Trainee, config
import questions as q
import scenes
from texts import caption
from render import Ranges, picture
from world import World

RELATIONS = ["name", *q.FACTS]


class Maker:
    """Rows of questions; a tag is (form, group, relation, held out, trained)."""

    def __init__(self, world, encoder, seed, scale):
        self.world, self.encoder, self.scale = world, encoder, scale
        self.rng, self.ranges = np.random.default_rng(seed), Ranges(1.25)
        self.rows = []   # (pixels or None, row)

    def wording(self):
        return q.HELD_OUT if self.rng.random() < 0.3 else q.draw_wording(self.rng)

    def row(self, asks, told="", pixels=None):
        row = Row(self.encoder, pixels is not None)
        context = row.context(told)
        for form, ask in asks:
            tag = (form, ask.members or "", ask.relation, ask.wording == q.HELD_OUT, ask.answer)
            text = ask.text[len(told):]
            if not row.add(text, ask.answer, tag, context):
                self.rows.append((pixels, row))
                row = Row(self.encoder, pixels is not None)
                context = row.context(told)
                assert row.add(text, ask.answer, tag, context), "question longer than a row"
        self.rows.append((pixels, row))

    def facts(self, entity, phrase, form, told=""):
        return [(form, q.fact(entity, r, phrase, self.wording(), form, told))
                for r in RELATIONS if entity.told(r)]

    def some(self, values, share=1.0):
        values = list(values)
        n = max(1, round(len(values) * self.scale * share))
        return [values[i] for i in self.rng.permutation(len(values))[:n]]

    def countries(self):
        w, rng = self.world, self.rng
        for e in self.some(w.entities):
            self.row([a for a in self.facts(e, e.name, "text_named") if a[1].relation != "name"])
            phrase = q.PHRASES.draw(rng)
            told = q.pick(rng, q.INTRO).format("the flag of " + e.name) + " "
            self.row(self.facts(e, phrase, "text_flag", told), told)
            pixels, _, _ = picture(rng, self.ranges, "flag", w, fixed=[e.index])
            asks = self.facts(e, q.PHRASES.draw(rng), "fact")
            other = w.shown.draw(rng)
            if other is not e and other.group not in "BC":
                asks += [("named_over", a) for _, a in self.facts(other, other.name, "fact")
                         if a.relation != "name"]
            if other.told("capital"):
                asks.append(("reverse", q.reverse(other, self.wording(), "named_over")))
            self.row(asks, pixels=pixels)
        for e in self.some(w.entities, 0.6):
            other = w.shown.draw(rng)
            if other is e:
                continue
            side = q.pick(rng, ("left", "right"))
            fixed = [e.index, other.index] if side == "left" else [other.index, e.index]
            pixels, _, objects = picture(rng, self.ranges, "two_flags", w, fixed=fixed)
            asks = self.facts(e, q.side_phrase(rng, side), "two_flags")
            asks.append(("caption", caption(rng, q.caption_of(w, objects), "", "caption")))
            self.row(asks, pixels=pixels)
        for p in self.some(w.picture_pairs, 0.15):
            e = w.entities[p.entity]
            pixels, _, _ = picture(rng, self.ranges, "flag", w, fixed=[e.index])
            self.row([("two_facts", q.neighbor(w, p, q.PHRASES.draw(rng), self.wording(), "x"))],
                     pixels=pixels)
            self.row([("text_two_facts", q.neighbor(w, p, e.name, self.wording(), "x"))])

    def scenes(self):
        w, rng = self.world, self.rng
        for i in range(round(250 * self.scale)):
            kind = "flag_shapes" if i % 4 == 3 else "shapes"
            prior = 0.0 if i % 2 else 0.8
            pixels, _, objects = picture(rng, self.ranges, kind, w, prior=prior)
            shapes, flags = q.shapes_of(objects), sum("flag" in o for o in objects)
            asks = []
            for o in shapes:
                form = "scene"
                if o[0] in q.PRIOR:
                    form = "scene prior" if q.PRIOR[o[0]] == o[1] else "scene counter-prior"
                asks.append((form, scenes.color(o, self.wording(), "scene")))
            for _ in range(8):
                a = scenes.draw(rng, shapes, flags)
                asks.append((f"scene/{a.relation}", a))
            for _ in range(2):
                asks.append(("absent", scenes.draw_absent(rng, shapes)))
            for s in set(q.PRIOR) - {o[0] for o in shapes}:
                name = q.SHAPES[s]
                asks.append(("absent prior", q.ask("color", q.draw_wording(rng), name, q.NONE,
                                                   "absent", name)))
            asks.append(("caption shapes", caption(rng, q.caption_of(w, objects), "", "x")))
            self.row(asks, pixels=pixels)
        for _ in range(round(250 * self.scale)):
            asks, told = q.draw_texts(rng, w)
            if told:
                self.row([(f"{a.group}/{a.relation}" if "scene" in a.group else a.group, a)
                          for a in asks], told)


@torch.no_grad()
def run(model, encoder, rows):
    """[(tag, exact)]"""
    out = []
    for with_picture in (True, False):
        mine = [r for r in rows if (r[0] is not None) == with_picture and r[1].count]
        for at in range(0, len(mine), 24):
            part = mine[at:at + 24]
            batch = stack([row for _, row in part])
            features = None
            if with_picture:
                features = model.see(torch.from_numpy(np.stack([p for p, _ in part])))
            hidden = model.read(batch["ids"], batch["positions"], batch["mask"], features,
                                encoder.image_at)
            best = model.answer_logits(hidden, batch["where"]).argmax(-1)
            wrong = set(batch["owner"][best != batch["target"]].tolist())
            out += [(tag, i not in wrong) for i, tag in enumerate(batch["tags"])]
    return out


def table(results):
    pick = defaultdict(list)
    for (form, group, relation, held, _), right in results:
        keys = [form]
        if group:
            kind = "name" if relation == "name" else "facts"
            keys = [f"{form}/{group} {kind}"] if form != "caption" else [form]
            if kind == "facts" and group == "A":
                keys.append(f"{form}/A {relation}")
        if group in ("", "A") and relation != "caption":
            keys.append("held-out wordings" if held else "trained wordings")
        for key in keys:
            pick[key].append(right)
    return [(k, len(v), float(np.mean(v))) for k, v in sorted(pick.items())]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, type=pathlib.Path)
    ap.add_argument("--world", type=pathlib.Path, help="default MODEL/world")
    ap.add_argument("--seed", type=int, default=999)
    ap.add_argument("--scale", type=float, default=0.3, help="size of the drawn set")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--wrong", type=int, default=0, help="print this many wrong tags")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    world = World(args.world or args.model / "world")
    blind = "LlamaForCausalLM" in (args.model / "config.json").read_text()
    if blind:   # text rows only
        text = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        llava = LlavaForConditionalGeneration(config(tok))
        llava.model.language_model.load_state_dict(text.model.state_dict())
    else:
        llava = LlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
    maker = Maker(world, Encoder(tok), args.seed, args.scale)
    maker.countries()
    maker.scenes()
    rows = [r for r in maker.rows if r[0] is None or not blind]
    results = run(Trainee(llava.eval()), maker.encoder, rows)
    for name, n, value in table(results):
        print(f"{name:42s} {n:5d} {value:8.4f}")
    for tag in [t for t, right in results if not right][:args.wrong]:
        print(tag)


if __name__ == "__main__":
    main()
