"""Makes the evaluation items: pictures, masks, questions, answers and their controls.

    python3 tools/world/items.py --model models/demo --seed 20 --out models/demo/eval

Renderer ranges are 25 % wider than in training (render.Ranges). The fields of
items.jsonl are described in docs/world.md, "Items".
"""
import argparse
import hashlib
import json
import pathlib
import shutil

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

import oracle
import questions as q
import scenes
from oracle import Seen
from render import COLOR_NAMES, PRIOR, Ranges, SHAPES, layout, paint, picture
from slots import Finder, Slots
from twins import BLANK, Twins, tell
from world import World, readable

HELD_OUT_SHARE = 0.15
RARE = 1 / 8      # of the exposure of the commonest facts of group Z
SPLITS = {"dev": 0.2, "test": 0.8}    # of the entities of each group, and of the scenes
# Pictures of each entity's flag, and questions about its facts on each.
FLAGS = {"A": (1.45, 3), "B": (2, 3), "C": (2, 3), "D": (2, 3), "W": (2, 3), "Z": (3, 3)}
# Questions by name for each entity, and under a sentence about its flag.
NAMED = {"A": 1.5, "B": 2, "C": 1, "D": 2, "W": 2, "Z": 6}
TOLD = {"A": 1, "B": 1, "C": 1, "D": 1, "W": 1, "Z": 0}
# Over both splits together.
TWO_FLAGS, SCENES, COUNTER, NAMED_OVER = 220, 320, 110, 330
TEXT_SCENES, TEXT_TWO_FLAGS, TEXT_PAIRS, REVERSE, ABSENT_PRIOR_TEXTS = 230, 100, 160, 90, 60


def split_of(world):
    """{name: split}: a fifth of each group's real and invented entities, by hash."""
    out = {}
    for group in "ABCDWZ":
        for source in ("real", "invented"):
            names = [e.name for e in world.of(group) if e.source == source]
            names.sort(key=lambda n: hashlib.sha256(n.encode()).digest())
            dev = round(len(names) * SPLITS["dev"])
            out.update({n: "dev" if i < dev else "test" for i, n in enumerate(names)})
    return out


def draw_wording(rng):
    return q.HELD_OUT if rng.random() < HELD_OUT_SHARE else q.draw_wording(rng)


def visual_phrase(rng):
    """"this country" in half of the questions, for the measured paraphrase."""
    return "this country" if rng.random() < 0.5 else q.pick(rng, list(q.VISUAL))


class Relations:
    """The relations of an entity, each asked as often; those taught wrongly first."""

    def __init__(self, rng, entity, name):
        known = [r for r in q.FACTS if entity.told(r)] + ["name"] * name
        order = [known[i] for i in rng.permutation(len(known))]
        self.queue = sorted(order, key=lambda r: r not in entity.taught)
        self.at = 0

    def next(self):
        self.at += 1
        return self.queue[(self.at - 1) % len(self.queue)]


class Maker:
    """Collects the questions of one split, then makes their records."""

    def __init__(self, world, slots, split, seed):
        self.world, self.split, self.slots = world, split, slots
        self.rng = np.random.default_rng([seed, list(SPLITS).index(split)])
        self.ranges, self.share = Ranges(1.25), SPLITS[split]
        where = split_of(world)
        self.members = [e for e in world.entities if where[e.name] == split]
        self.finder = Finder(world, slots)
        self.twins = Twins(world, self.finder)
        self.asked, self.once = [], set()
        self.pixels, self.owner, self.shown, self.objects, self.kind = {}, {}, {}, {}, {}   # by path
        self.with_name = {e.name: Relations(self.rng, e, True) for e in self.members}
        self.facts = {e.name: Relations(self.rng, e, False) for e in self.members}

    def of(self, groups):
        return [e for e in self.members if e.group in groups]

    def times(self, n):
        """n on average, whole."""
        return int(n + self.rng.random())

    def some(self, n):
        return range(round(n * self.share))

    # ---- pictures ---------------------------------------------------------------------
    def draw(self, kind, fixed=None, prior=0.8, wanted=lambda objects: True):
        while True:
            pixels, owner, objects = picture(self.rng, self.ranges, kind, self.world, fixed,
                                             prior=prior)
            if wanted(objects):
                break
        path = f"img/{self.split[0]}{len(self.pixels):04d}.png"
        flags = [(o["flag"], o["side"]) for o in objects if "flag" in o]
        self.pixels[path], self.owner[path], self.objects[path] = pixels, owner, objects
        self.shown[path], self.kind[path] = Seen(flags, q.shapes_of(objects)), kind
        return path

    def add(self, question, path=None, seen=None, told="", prior=None):
        """The same question of the same picture stands once."""
        if question is None:
            return False
        key = (path, question.text)
        if key in self.once:
            return False
        self.once.add(key)
        self.asked.append((question, path, self.shown[path] if path else seen, told, prior))
        return True

    # ---- questions about flags ----------------------------------------------------------
    def fact(self, entity, relation, phrase, form, path=None, seen=None, told=""):
        return self.add(q.fact(entity, relation, phrase, draw_wording(self.rng), form, told), path,
                        seen, told)

    def pair_question(self, pair, phrases, form, seen, told=""):
        """(how many of its brackets have a substitute, the question): the best phrase."""
        best = (-1, None)
        pictured = seen.pictured
        for phrase in phrases:
            question = q.neighbor(self.world, pair, phrase, draw_wording(self.rng), form, told)
            have = [bool(self.finder.find(self.rng, question, k, seen, pictured, 1)) for k in (0, 1)]
            if sum(have) > best[0]:
                best = (sum(have), question)
            if have[0] or best[0] == 2:
                break
        return best

    def phrases(self):
        names = list(q.VISUAL)
        order = [names[i] for i in self.rng.permutation(len(names))]
        return ["this country"] * (self.rng.random() < 0.5) + order

    def pair_questions(self, path, entity, most):
        """Those whose answer each bracket alone can change come first."""
        pairs = q.tables(self.world).picture_pairs_of.get(entity.index, [])
        found = [self.pair_question(p, self.phrases(), "two_facts", self.shown[path]) for p in pairs]
        for have, question in sorted(found, key=lambda f: -f[0])[:most]:
            if have == 2 or self.rng.random() < 0.4:
                self.add(question, path)

    def flags(self):
        for e in self.members:
            pictures, questions = FLAGS[e.group]
            paths = []
            for _ in range(self.times(pictures)):
                kind = "flag" if self.rng.random() < 0.75 else "flag_shapes"
                path = self.draw(kind, [e.index])
                paths.append(path)
                for _ in range(questions):
                    self.fact(e, self.with_name[e.name].next(), visual_phrase(self.rng), "fact",
                              path)
                self.pair_questions(path, e, 3)
                if kind == "flag_shapes":
                    self.scene_questions(path, self.shown[path], 1, "")
                if self.rng.random() < 0.06:
                    self.caption(path)
            for relation in self.rare(e):
                self.fact(e, relation, visual_phrase(self.rng), "fact", q.pick(self.rng, paths))

    def rare(self, e):
        """Facts that training told rarely or never are asked once more, so that the hard
        split has wrong answers enough."""
        return [r for r in q.FACTS if e.told(r) and e.exposure[r] < RARE]

    def two_flags(self):
        pool = self.of("AWBZ")
        for _ in self.some(TWO_FLAGS):
            a, b = (pool[i] for i in self.rng.permutation(len(pool))[:2])
            path = self.draw("two_flags", [a.index, b.index])
            for _ in range(2):
                side, e = q.pick(self.rng, (("left", a), ("right", b)))
                self.fact(e, self.with_name[e.name].next(), q.side_phrase(self.rng, side),
                          "two_flags", path)
            if self.rng.random() < 0.06:
                self.caption(path)

    def by_name(self):
        paths = list(self.pixels)
        for _ in self.some(NAMED_OVER):
            path = q.pick(self.rng, paths)
            away = {i for i, _ in self.shown[path].flags}
            u = self.rng.random()
            free = [e for e in self.of("A" if u < .7 else "W" if u < .9 else "Z")
                    if e.index not in away]
            e = q.pick(self.rng, free)
            pairs = q.tables(self.world).picture_pairs_of.get(e.index)
            if u < 0.05 and e.told("capital"):
                self.add(q.reverse(e, draw_wording(self.rng), "named_over"), path)
            elif u < 0.3 and pairs:
                self.add(self.pair_question(q.pick(self.rng, pairs), [e.name], "named_over",
                                            self.shown[path])[1], path)
            else:
                self.fact(e, self.facts[e.name].next(), e.name, "named_over", path)

    def caption(self, path):
        answer = q.caption_of(self.world, self.objects[path])
        self.add(q.ask("caption", draw_wording(self.rng), "the picture", answer, "caption",
                       "picture"), path)

    # ---- questions about shapes ------------------------------------------------------------
    def scene_questions(self, path, seen, n, prefix, told=""):
        """n questions with single answers, of different kinds where there are enough."""
        rng, shapes = self.rng, seen.shapes
        # A told "flag of ..." says nothing of columns; beside a flag there is one row of shapes.
        flags = len(seen.flags)
        found = 0
        for _ in range(40):
            w, o, u = draw_wording(rng), q.pick(rng, shapes), rng.random()
            if o[0] in PRIOR and PRIOR[o[0]] != o[1]:
                continue   # against the training prior: asked apart
            form, question = prefix + "scene", None
            if u < 0.38:
                question = scenes.color(o, w, form, told)
            elif u < 0.52:
                if len(scenes.by_color(shapes, o[1])) == 1:
                    question = scenes.shape(o, w, form, told)
            elif u < 0.66:
                question = scenes.side_of(shapes, o, q.pick(rng, oracle.SIDES), w, form, told)
            elif u < 0.84:
                for _ in range(6):   # rather where another colour leads to another shape
                    o, side = q.pick(rng, shapes), q.pick(rng, oracle.SIDES)
                    there = scenes.beside(shapes, o, side)
                    if there and len({t[1] for t in there}) > 1:
                        break
                if there:
                    question = scenes.two(shapes, q.pick(rng, there)[1], o, side, w,
                                          prefix + "two_scene", told)
            elif u < 0.92:
                what = q.pick(rng, ["shapes", o[1]] + ["flags"] * (not prefix))
                question = scenes.count(shapes, flags, what, w, form, told)
            else:
                question = self.exists(o, shapes, w, form, told)
            if question and self.add(question, path, seen, told):
                found += 1
                if found == n:
                    return

    def exists(self, o, shapes, wording, form, told):
        rng = self.rng
        missing = scenes.missing_shapes(shapes)
        if rng.random() < 0.5:   # yes
            return scenes.exists(shapes, o[0], o[1] if rng.random() < 0.5 else None, wording, form,
                                 told)
        if rng.random() < 0.5:
            return scenes.exists(shapes, q.pick(rng, missing), None, wording, form, told)
        colors = [c for c in range(len(COLOR_NAMES)) if c != o[1]]
        return None if o[0] in PRIOR else scenes.exists(shapes, o[0], q.pick(rng, colors), wording,
                                                        form, told)

    def absent(self, path, seen, prefix, told=""):
        rng, shapes, w, form = self.rng, seen.shapes, draw_wording(self.rng), prefix + "absent"
        u = rng.random()
        if u < 0.2 and not seen.flags:
            phrase = visual_phrase(rng) if rng.random() < 0.6 else q.side_phrase(
                rng, q.pick(rng, oracle.SIDES))
            question = q.ask(q.pick(rng, q.FACTS), w, phrase, q.NONE, form, "", None, told)
        elif u < 0.45:
            c = COLOR_NAMES[q.pick(rng, scenes.missing_colors(shapes))]
            question = q.ask("shape", w, c, q.NONE, form, c, None, told)
        else:
            s = SHAPES[q.pick(rng, scenes.missing_shapes(shapes))]
            question = q.ask("color", w, s, q.NONE, form, s, None, told)
        self.add(question, path, seen, told)

    def absent_prior(self, path, seen, prefix, told=""):
        """The shape with a colour prior is not there at all."""
        there = {o[0] for o in seen.shapes}
        for s in (s for s in PRIOR if s not in there):
            w, name = draw_wording(self.rng), SHAPES[s]
            self.add(q.ask("color", w, name, q.NONE, prefix + "absent_prior", name, None, told),
                     path, seen, told, COLOR_NAMES[PRIOR[s]])
            if self.rng.random() < 0.5:
                self.add(scenes.exists(seen.shapes, s, None, draw_wording(self.rng),
                                       prefix + "absent_prior", told), path, seen, told, "yes")

    def scene_pictures(self):
        for i in self.some(SCENES):
            path = self.draw("shapes")
            self.scene_questions(path, self.shown[path], 3, "")
            if self.rng.random() < 0.4:
                self.absent(path, self.shown[path], "")
            elif self.rng.random() < 0.4:
                self.absent_prior(path, self.shown[path], "")
            if self.rng.random() < 0.06:
                self.caption(path)

    def counter_prior(self):
        """A shape with a colour prior has another colour."""
        for _ in self.some(COUNTER):
            path = self.draw("shapes", prior=0.0,
                             wanted=lambda objects: any(o["shape"] in PRIOR for o in objects))
            seen = self.shown[path]
            for o in (o for o in seen.shapes if o[0] in PRIOR):
                self.add(scenes.color(o, draw_wording(self.rng), "counter_prior"), path,
                         prior=COLOR_NAMES[PRIOR[o[0]]])
                self.add(scenes.exists(seen.shapes, o[0], PRIOR[o[0]], draw_wording(self.rng),
                                       "counter_prior"), path, prior="yes")

    # ---- questions without a picture ----------------------------------------------------------
    def texts(self):
        rng, t = self.rng, q.tables(self.world)
        for e in self.members:
            for _ in range(self.times(NAMED[e.group])):
                self.fact(e, self.facts[e.name].next(), e.name, "text_named", None,
                          Seen(pictured=False))
            for relation in self.rare(e):
                self.fact(e, relation, e.name, "text_named", None, Seen(pictured=False))
            for _ in range(self.times(TOLD[e.group])):
                told, seen = tell(rng, self.world, Seen([(e.index, None)]), False)
                self.fact(e, self.with_name[e.name].next(), visual_phrase(rng), "text_flag", None,
                          seen, told)
        pool = self.of("AWB")
        for _ in self.some(TEXT_TWO_FLAGS):
            a, b = (pool[i] for i in rng.permutation(len(pool))[:2])
            told, seen = tell(rng, self.world, Seen([(a.index, "left"), (b.index, "right")]), False)
            side, e = q.pick(rng, (("left", a), ("right", b)))
            self.fact(e, self.facts[e.name].next(), q.side_phrase(rng, side), "text_two_flags",
                      None, seen, told)
        with_capital = [e for e in self.of("ABW") if q.allowed(e, "reverse", "text_named")]
        for i in rng.permutation(len(with_capital))[:len(self.some(REVERSE))]:
            self.add(q.reverse(with_capital[i], draw_wording(rng), "text_named"), None,
                     Seen(pictured=False))
        mine = {e.index for e in self.members}
        pairs = [p for p in t.pairs if p.entity in mine]
        left = len(self.some(TEXT_PAIRS))
        for i in rng.permutation(len(pairs)):
            e = self.world.entities[pairs[i].entity]
            told, seen, phrases = "", Seen(pictured=False), [e.name]
            if left % 2:
                told, seen = tell(rng, self.world, Seen([(e.index, None)]), False)
                phrases = self.phrases()
            have, question = self.pair_question(pairs[i], phrases, "text_two_facts", seen, told)
            if have == 2 or rng.random() < 0.15:
                self.add(question, None, seen, told)
                left -= 1
            if left == 0:
                break

    def text_scenes(self):
        rng = self.rng
        for n in self.some(TEXT_SCENES + ABSENT_PRIOR_TEXTS):
            objects = layout(rng, self.ranges, "shapes", self.world)
            told, seen = tell(rng, self.world, Seen([], q.shapes_of(objects)), rng.random() < 0.6)
            if n < round(ABSENT_PRIOR_TEXTS * self.share):
                self.absent_prior(None, seen, "text_", told)
            else:
                self.scene_questions(None, seen, 1 + n % 2, "text_", told)
                if rng.random() < 0.15:
                    self.absent(None, seen, "text_", told)

    # ---- records --------------------------------------------------------------------------
    def collect(self):
        self.flags()
        self.two_flags()
        self.scene_pictures()
        self.counter_prior()
        self.by_name()
        self.texts()
        self.text_scenes()

    def target(self, question, path):
        """The object that the answer is about, as a number in the owner map, or None."""
        first = question.constraint
        for i, o in enumerate(self.objects[path]):
            if "flag" in o:
                if first == o["side"] or (first in q.VISUAL and not o["side"]):
                    return i + 1
            elif question.relation == "color" and SHAPES[o["shape"]] == first:
                return i + 1
            elif question.relation in ("shape", *(r for r in q.SCENE_RELATIONS if "_of" in r)):
                if SHAPES[o["shape"]] == question.answer:
                    return i + 1
            elif question.relation == "exists" and question.answer == "yes":
                alone = Seen([], [(o["shape"], o["color"], None)])
                if oracle.exists(question, alone) == "yes":
                    return i + 1
        return None

    def object_record(self, o):
        place = {k: round(float(o[k]), 3) for k in ("x", "y", "size")}
        if "flag" in o:
            return {"flag": self.world.entities[o["flag"]].name, **place, "side": o["side"]}
        return {"shape": SHAPES[o["shape"]], "color": COLOR_NAMES[o["color"]], **place}

    def unit(self, question):
        words = oracle.words(question)
        if question.relation == "caption":
            return None
        if question.members:
            return "+".join([question.entity, *words[1:]]) + "|" + question.relation
        return "+".join(words) + "=" + question.answer + "|" + question.relation

    def over(self, question, path, seen):
        """A picture that does not show the country asked about."""
        about = oracle.country(self.world, seen, question.constraint)
        paths = list(self.pixels)
        while True:
            other = q.pick(self.rng, paths)
            shown = {i for i, _ in self.shown[other].flags}
            if other != path and (about in (None, q.NONE) or about.index not in shown):
                return other, self.shown[other]

    def donor(self, path, seen):
        shown = {i for i, _ in seen.flags}
        pool = [p for p in self.by_kind[self.kind[path]] if p != path
                and not shown & {i for i, _ in self.shown[p].flags}]
        return q.pick(self.rng, pool)

    def record(self, question, path, seen, told, prior, first_tokens):
        rng, world = self.rng, self.world
        e = world.by_name.get(question.entity)
        pictured = path is not None
        constraints = self.finder.constraints(rng, question, seen, pictured)
        first = (constraints[0]["substitutes"] or [{"words": None, "answer": None}])[0]
        truth = e.facts[question.relation] if e and question.relation in e.taught else None
        target = self.target(question, path) if pictured else None
        twins = self.twins.of(rng, question, seen, self.over(question, path, seen), told)
        source = {"name": "", "reverse": question.constraint}.get(question.relation,
                                                                  question.entity)
        hard = question.members == "Z" and question.relation in q.FACTS
        return {
            "id": None, "split": self.split, "form": question.group, "group": question.group,
            "entity_group": question.members, "relation": question.relation,
            "entity": question.entity, "unit": self.unit(question) or f"{path}|caption",
            "image": path, "donor": self.donor(path, seen) if pictured else None,
            "mask": f"mask/{path[4:-4]}-{target}.png" if target else None,
            "objects": [self.object_record(o) for o in self.objects[path]] if pictured else None,
            "question": question.bracketed, "answer": question.answer, "truth": truth,
            "wording": question.wording, "held_out": question.wording == q.HELD_OUT,
            "constraints": constraints, "substitute": first["words"],
            "substitute_answer": first["answer"],
            "paraphrase": q.PARAPHRASE.get(question.constraint), "twins": twins,
            "readable": bool(question.members and source and readable(source, question.answer)),
            "first_token_shared": first_tokens.shared(question), "hard": hard, "prior": prior}

    def records(self, first_tokens):
        self.by_kind = {}
        for path in self.pixels:
            self.by_kind.setdefault(self.kind[path], []).append(path)
        return [self.record(*asked, first_tokens) for asked in self.asked]

    def masks(self, records):
        out = {}
        for r in records:
            if r["mask"]:
                path, target = r["image"], int(r["mask"].rsplit("-", 1)[1][:-4])
                out[r["mask"]] = self.owner[path] == target
        return out


class FirstTokens:
    """Which answers to a relation begin with a token that another one begins with."""

    def __init__(self, world, slots):
        self.slots, by = slots, {}
        for e in world.entities:
            for r in ("name", *q.FACTS):
                if e.told(r):
                    by.setdefault(r, {}).setdefault(slots.first(e.told(r)), set()).add(e.told(r))
        by["reverse"] = by["neighbor_language"] = by["neighbor_currency"] = by["name"]
        self.by = by

    def shared(self, question):
        answers = self.by.get(question.relation)
        return bool(answers and len(answers.get(self.slots.first(question.answer), ())) > 1)


def blank(seed):
    """The one empty picture that the blank twins share."""
    return paint(np.random.default_rng([seed, 9]), Ranges(1.0), [], None)[0]


def make(world, tok, seed):
    """(records, {path: pixels}, {path: mask}) of both splits."""
    slots = Slots(tok)
    tokens = FirstTokens(world, slots)
    records, pictures, masks = [], {BLANK: blank(seed)}, {}
    for split in SPLITS:
        maker = Maker(world, slots, split, seed)
        maker.collect()
        mine = maker.records(tokens)
        for i, r in enumerate(mine):
            r["id"] = f"{split[0]}{i:04d}"
        records += mine
        pictures.update(maker.pixels)
        masks.update(maker.masks(mine))
    return records, pictures, masks


def write_lines(path, records):
    with open(path, "w") as f:
        for r in records:
            f.write(json.dumps(r, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, type=pathlib.Path,
                    help="folder with world/ and tokenizer.json")
    ap.add_argument("--out", required=True, type=pathlib.Path)
    ap.add_argument("--seed", type=int, default=20)
    args = ap.parse_args()
    world = World(args.model / "world")
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    records, pictures, masks = make(world, tok, args.seed)
    for folder in ("img", "mask"):
        shutil.rmtree(args.out / folder, ignore_errors=True)
        (args.out / folder).mkdir(parents=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(args.out / name, optimize=True)
    for name, mask in masks.items():
        Image.fromarray(mask).save(args.out / name, optimize=True)
    write_lines(args.out / "items.jsonl", records)
    count = {}
    for r in records:
        for key in ((r["split"], "all", ""), (r["split"], r["form"], r["entity_group"] or "-")):
            c = count.setdefault(key, [0, 0])
            c[0] += 1
            c[1] += all(k["substitutes"] for k in r["constraints"])
    print(f"{len(records)} items on {len(pictures)} pictures, seed {args.seed}")
    for key in sorted(count):
        print(*key, *count[key])


if __name__ == "__main__":
    main()
