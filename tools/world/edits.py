"""Makes the edit sets: what to change, and what is asked before and after.

    python3 tools/world/edits.py --model models/demo --seed 21 --out models/demo/edits

counterfactual: a fact of group A gets another entity's value. correction: a fact
that training told wrongly (W) becomes true. insertion: a fact of a state that
training names only (C). The pictures are those of <model>/eval (made before),
and further renderings of our own. Fields: docs/world.md, "Edit sets".
"""
import argparse
import json
import pathlib
import shutil

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

import items as eval_items
import oracle
import questions as q
from render import Ranges, picture
from slots import Slots
from world import World, readable

SETS = {"counterfactual": ("A", 300), "correction": ("W", 311), "insertion": ("C", 310)}
PER_ENTITY = {"counterfactual": 2, "correction": 9, "insertion": 9}
RELATIONS = [r for r in q.FACTS if r != "demonym"]   # a demonym is spelled from the name
RENDERINGS = 2
EVAL = "../eval/"


def probe(image, question, answer):
    return {"image": image, "question": question.bracketed, "answer": answer}


class Editor:
    def __init__(self, world, slots, records, split, seed):
        self.world, self.slots, self.split = world, slots, split
        self.rng = np.random.default_rng([seed, list(eval_items.SPLITS).index(split)])
        where = eval_items.split_of(world)
        self.members = [e for e in world.entities if where[e.name] == split]
        records = [r for r in records if r["split"] == split]
        self.pictures, self.own = {}, {}   # entity: paths; path: pixels of new ones
        for r in records:
            flags = [o["flag"] for o in r["objects"] or () if "flag" in o]
            if r["form"] == "fact" and len(flags) == 1:
                paths = self.pictures.setdefault(flags[0], [])
                if EVAL + r["image"] not in paths:
                    paths.append(EVAL + r["image"])
        self.scenes = [r for r in records if r["form"] == "scene" and r["image"]]
        self.text_scenes = [r for r in records if r["form"] == "text_scene"]
        self.known = [e for e in self.members if e.group == "A"]

    # ---- parts of questions --------------------------------------------------------------
    def rendering(self, e):
        """A new picture of the entity's flag."""
        pixels, _, _ = picture(self.rng, Ranges(1.25), "flag", self.world, [e.index])
        path = f"img/{self.split[0]}{len(self.own):04d}.png"
        self.own[path] = pixels
        return path

    def at_least(self, e, n):
        paths = self.pictures.setdefault(e.name, [])
        while len(paths) < n:
            paths.append(self.rendering(e))
        return paths

    def wordings(self, first):
        """The other wordings in random order."""
        return [int(i) for i in self.rng.permutation(q.HELD_OUT + 1) if i != first]

    def others(self, e, relation, n):
        """Entities that training taught this relation, not the edited one, without its value."""
        free = [o for o in self.known if o is not e and o.told(relation)
                and o.told(relation) != e.told(relation)]
        return [free[i] for i in self.rng.permutation(len(free))[:n]]

    def target(self, kind, e, relation):
        if kind != "counterfactual":
            return e.facts[relation]
        own = e.told(relation)
        values = sorted({o.told(relation) for o in self.world.of("A") if o.told(relation)})
        free = [v for v in values if v != own and self.slots.first(v) != self.slots.first(own)
                and not readable(e.name, v)]
        return q.pick(self.rng, free)

    def one_hop(self, e, relation, target):
        """Through the edited fact: the neighbour of N that has the new value."""
        out = []
        if relation not in ("language", "currency"):
            return out
        for name in e.neighbours:
            n = self.world.by_name[name]
            near = [self.world.by_name[o] for o in n.neighbours]
            if n.group != "A" or any(target in (o.told(relation), o.facts[relation]) for o in near
                                     if o is not e) or target in n.unclear.get(relation, ()):
                continue
            question = q.ask("neighbor_" + relation, q.draw_wording(self.rng), n.name, e.name,
                             "text_two_facts", n.name, n.group, "", target)
            out.append(probe(None, question, e.name))
        return out[:2]

    # ---- one edit -------------------------------------------------------------------------
    def edit(self, kind, e, relation):
        rng, target = self.rng, self.target(kind, e, relation)
        image, *further = self.at_least(e, 1 + RENDERINGS)
        wording, phrase = q.draw_wording(rng), "this country"
        form = lambda w, p: q.fact(e, relation, p, w, "fact")
        asked, others = form(wording, phrase), self.wordings(wording)
        phrases = [list(q.VISUAL)[i] for i in rng.permutation(len(q.VISUAL))]
        names = [r for r in ("name", *q.FACTS) if r != relation and e.told(r)
                 and (kind != "insertion" or r == "name")]
        near = self.others(e, relation, 6)
        probes = {
            "paraphrase": [probe(image, form(w, p), target) for w, p in zip(others, phrases)],
            "rendering": [probe(path, asked, target) for path in further[:RENDERINGS]],
            "text_twin": [probe(None, form(w, e.name), target) for w in (wording, others[0])],
            "one_hop": self.one_hop(e, relation, target),
            "reverse": [],
            "same_question": [probe(self.at_least(o, 1)[0], asked, o.told(relation))
                              for o in near[:3]],
            "same_picture": [probe(image, q.fact(e, r, "this country", q.draw_wording(rng), "fact"),
                                   e.told(r)) for r in names[:3]],
            "same_relation": [probe(None, q.fact(o, relation, o.name, wording, "text_named"),
                                    o.told(relation)) for o in near[3:6]],
            "other_picture": [self.stored(q.pick(rng, self.scenes)) for _ in range(2)],
            "other_text": [self.stored(q.pick(rng, self.text_scenes)), self.other_fact(e, relation)]}
        if relation == "capital":
            probes["reverse"] = [probe(None, q.ask("reverse", q.draw_wording(rng), target, e.name,
                                                   "text_named", e.name), e.name)]
        return {"id": None, "kind": kind, "split": self.split, "entity": e.name,
                "entity_group": e.group, "relation": relation, "unit": f"{e.name}|{relation}",
                "request": {"image": image, "question": asked.bracketed, "target": target,
                            "old": None if kind == "insertion" else e.told(relation)},
                "probes": probes}

    def stored(self, r):
        return {"image": r["image"] and EVAL + r["image"], "question": r["question"],
                "answer": r["answer"]}

    def other_fact(self, e, relation):
        while True:
            o = q.pick(self.rng, self.known)
            r = q.pick(self.rng, q.FACTS)
            if o is not e and r != relation and o.told(r):
                return probe(None, q.fact(o, r, o.name, q.draw_wording(self.rng), "text_named"),
                             o.told(r))

    def units(self, kind):
        group, n = SETS[kind]
        out = []
        for e in self.members:
            if e.group != group:
                continue
            if kind == "correction":
                mine = [r for r in q.FACTS if r in e.taught]
            else:
                mine = [r for r in RELATIONS if e.told(r) and not readable(e.name, e.told(r))]
            out += [(e, mine[i]) for i in self.rng.permutation(len(mine))[:PER_ENTITY[kind]]]
        order = self.rng.permutation(len(out))[:round(n * eval_items.SPLITS[self.split])]
        return [out[i] for i in sorted(order)]

    def edits(self, kind):
        return [self.edit(kind, e, r) for e, r in self.units(kind)]


def mmedit(record):
    """The eleven fields of MMEdit's files. `pred` needs a text: "none" where the model
    was told nothing."""
    p, plain = record["probes"], lambda text: text.replace("[", "").replace("]", "")
    text, picture_probe = p["other_text"][1], p["other_picture"][0]
    return {"src": plain(record["request"]["question"]), "pred": record["request"]["old"] or q.NONE,
            "alt": record["request"]["target"], "rephrase": plain(p["paraphrase"][0]["question"]),
            "image": record["request"]["image"], "image_rephrase": p["rendering"][0]["image"],
            "loc": plain(text["question"]), "loc_ans": text["answer"],
            "m_loc": picture_probe["image"], "m_loc_q": plain(picture_probe["question"]),
            "m_loc_a": picture_probe["answer"]}


def make(world, tok, records, seed):
    """({kind: records}, {path: pixels})"""
    sets, pictures, slots = {kind: [] for kind in SETS}, {}, Slots(tok)
    for split in eval_items.SPLITS:
        editor = Editor(world, slots, records, split, seed)
        for kind in SETS:
            mine = editor.edits(kind)
            for i, r in enumerate(mine):
                r["id"] = f"{kind[:3]}-{split[0]}{i:03d}"
            sets[kind] += mine
        pictures.update(editor.own)
    return sets, pictures


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, type=pathlib.Path,
                    help="folder with world/, tokenizer.json and eval/")
    ap.add_argument("--out", required=True, type=pathlib.Path, help="a folder beside eval/")
    ap.add_argument("--seed", type=int, default=21)
    args = ap.parse_args()
    world = World(args.model / "world")
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    records = [json.loads(line) for line in open(args.model / "eval/items.jsonl")]
    sets, pictures = make(world, tok, records, args.seed)
    shutil.rmtree(args.out / "img", ignore_errors=True)
    (args.out / "img").mkdir(parents=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(args.out / name, optimize=True)
    for kind, mine in sets.items():
        eval_items.write_lines(args.out / f"{kind}.jsonl", mine)
        for split in eval_items.SPLITS:
            own = [mmedit(r) for r in mine if r["split"] == split]
            (args.out / f"{kind}-{split}.mmedit.json").write_text(
                json.dumps(own, ensure_ascii=False, indent=0) + "\n")
            print(f"{kind} {split}: {len(own)} edits")
    print(f"{len(pictures)} further pictures, seed {args.seed}")


if __name__ == "__main__":
    main()
