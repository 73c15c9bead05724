"""Checks the evaluation items and edit sets of a model folder.

    python3 tools/world/check.py models/demo

Every field against the table, the tokenizer and the pictures. Answers are worked
out anew from the objects of the picture, or from the sentence that tells it
(oracle.py), never from how an item was made. Faults name line and field.
"""
import json
import pathlib
import re
import sys

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

import oracle
import questions as q
import scenes
from edits import EVAL, SETS, mmedit
from items import FirstTokens, split_of
from oracle import Seen
from render import COLOR_NAMES, PRIOR, SHAPES, SIZE
from slots import Slots
from world import World, readable

FORMS = q.PICTURE_FORMS + q.TEXT_FORMS + ["counter_prior", "absent_prior", "text_absent_prior"]
FIELDS = {"id": str, "split": str, "form": str, "group": str, "entity_group": (str, type(None)),
          "relation": str, "entity": str, "unit": str, "image": (str, type(None)),
          "donor": (str, type(None)), "mask": (str, type(None)), "objects": (list, type(None)),
          "question": str, "answer": str, "truth": (str, type(None)), "wording": int,
          "held_out": bool, "constraints": list, "substitute": (str, type(None)),
          "substitute_answer": (str, type(None)), "paraphrase": (str, type(None)), "twins": dict,
          "readable": bool, "first_token_shared": bool, "hard": bool, "prior": (str, type(None))}
PROBES = {"paraphrase": 3, "rendering": 1, "text_twin": 1, "one_hop": 0, "reverse": 0,
          "same_question": 3, "same_picture": 1, "same_relation": 3, "other_picture": 1,
          "other_text": 1}
LEAST = {"counterfactual": (50, 200), "correction": (50, 200), "insertion": (50, 200)}
LOCAL = list(PROBES)[5:]


def parse(text, relation):
    """A bracketed question; the told sentence stays in `before`."""
    parts = re.split(r"[\[\]]", text)
    if len(parts) not in (3, 5):
        raise ValueError("brackets")
    second = None
    after = parts[2]
    if len(parts) == 5:
        second = (len(after), len(after) + len(parts[3]))
        after += parts[3] + parts[4]
    return q.Question(parts[0], parts[1], after, "", "", relation, "", 0, None, second)


def told_by(world, before):
    """What the sentences before the question tell."""
    seen = Seen(pictured=False)
    names = "|".join(sorted(map(re.escape, world.by_name), key=len, reverse=True))
    sides = [re.findall(rf"(left|right) flag is the flag of ({names})\b", before),
             re.findall(rf"[Oo]n the (left|right) is the flag of ({names})\b", before),
             [(s, n) for n, s in re.findall(rf"flag of ({names}) is on the (left|right)", before)]]
    for side, name in next((s for s in sides if s), ()):
        seen.flags.append((world.index(name), side))
    if not seen.flags:
        named = re.findall(rf"the flag of ({names})\b", before)
        seen.flags = [(world.index(n), None) for n in named]
    places = {" on the left": 0, " in the middle": 1, " on the right": 2}
    found = re.findall(r"\ban? (\w+) (\w+)\b( on the left| in the middle| on the right)?", before)
    column = None
    for color, shape, place in reversed(found):   # a place speaks for the shapes listed before it
        if color not in COLOR_NAMES or shape not in SHAPES:
            continue
        column = places.get(place, column)
        seen.shapes.insert(0, (SHAPES.index(shape), COLOR_NAMES.index(color), column))
    return seen


def shown(world, objects):
    seen = Seen()
    for o in objects:
        if "flag" in o:
            seen.flags.append((world.index(o["flag"]), o["side"]))
        else:
            seen.shapes.append((SHAPES.index(o["shape"]), COLOR_NAMES.index(o["color"]),
                                scenes.column(o["x"])))
    return seen


def caption(world, seen, objects):
    flags = sorted((o for o in objects or () if "flag" in o), key=lambda o: o["x"])
    shapes = sorted((o for o in objects or () if "shape" in o),
                    key=lambda o: (scenes.column(o["x"]), o["y"]))
    parts = ["the flag of " + o["flag"] for o in flags]
    parts += [q.article(o["color"] + " " + o["shape"]) for o in shapes]
    return q.listed(parts)


class Checker:
    def __init__(self, model):
        self.model = model
        self.world = World(model / "world")
        self.slots = Slots(Tokenizer.from_file(str(model / "tokenizer.json")))
        self.tokens = FirstTokens(self.world, self.slots)
        self.split = split_of(self.world)
        self.sizes, self.pictures = {}, {}   # path: size; path: (split, Seen)
        self.bad = 0

    def fault(self, where, text):
        self.bad += 1
        print(f"{where}: {text}")

    def each(self, where, faults):
        """What is so wrong that it cannot be looked at further is a fault as well."""
        try:
            for fault in faults:
                self.fault(where, fault)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError) as error:
            self.fault(where, f"cannot be checked: {type(error).__name__} {error}")

    def size(self, path):
        if path not in self.sizes:
            full = self.model / "eval" / path
            self.sizes[path] = Image.open(full).size if full.is_file() else None
        return self.sizes[path]

    # ---- items ----------------------------------------------------------------------------
    def wording(self, item, question):
        cut = q.WORDINGS[item["relation"]][item["wording"]].split("{c}")
        ok = question.before.rstrip().endswith(cut[0].rstrip()) or cut[0] in question.before
        rest = cut[1].split("{v}")
        return ok and question.after.endswith(rest[-1]) and rest[0] in question.after

    def substitutes(self, constraints, question, seen, answer, pictured):
        words = oracle.words(question)
        if [c["words"] for c in constraints] != words:
            yield "constraints: not the words of the brackets"
            return
        for k, c in enumerate(constraints):
            for s in c["substitutes"]:
                if not self.slots.swap(question, k, s["words"], pictured):
                    yield f"substitute {s['words']}: keeps a token or changes the length"
                other = oracle.with_words(question, k, s["words"])
                if oracle.right(self.world, other, seen) != s["answer"]:
                    yield f"substitute {s['words']}: {s['answer']} is not right"
                if self.slots.first(s["answer"]) == self.slots.first(answer):
                    yield f"substitute {s['words']}: answer begins like the item's"

    def twin(self, name, t, item, seen):
        if name not in ("named", "described", "named_over", "blank"):
            yield f"twins.{name}: unknown"
            return
        question = parse(t["question"], item["relation"])
        if name in ("named", "described"):
            if t["image"]:
                yield f"twins.{name}: has a picture"
            told = Seen(pictured=False)
            if name == "described":
                told = told_by(self.world, question.before)
        elif name == "blank":
            told = Seen()
            if t["image"] != "img/blank.png" or t["question"] != item["question"]:
                yield "twins.blank: not the item's question over the empty picture"
        else:
            told = self.pictures[t["image"]][1]
            if self.pictures[t["image"]][0] != item["split"]:
                yield "twins.named_over: picture of the other split"
            if question.constraint not in self.world.by_name:
                yield "twins.named_over: no name in the bracket"
        if item["relation"] == "caption":
            return
        if oracle.right(self.world, question, told) != t["answer"]:
            yield f"twins.{name}: {t['answer']} is not right"
        if name != "blank":
            if t["answer"] != item["answer"]:
                yield f"twins.{name}: another answer than the item's"
            for fault in self.substitutes(t["constraints"], question, told, t["answer"],
                                          bool(t["image"])):
                yield f"twins.{name}: {fault}"

    def place(self, item):
        text = item["form"].startswith("text")
        if (item["image"] is None) != text or (item["objects"] is None) != text:
            yield "image, objects: do not fit the form"
            return
        if text:
            if item["donor"] or item["mask"]:
                yield "donor, mask: without a picture"
            return
        for key in ("image", "donor", "mask"):
            if item[key] and self.size(item[key]) != (SIZE, SIZE):
                yield f"{key}: {item[key]} is not {SIZE}x{SIZE}"
        if item["donor"] in (None, item["image"]):
            yield "donor: none"
        elif self.pictures[item["donor"]][0] != item["split"]:
            yield "donor: of the other split"
        else:
            flags = lambda path: {i for i, _ in self.pictures[path][1].flags}
            if flags(item["image"]) & flags(item["donor"]):
                yield "donor: shows the same country"
        if item["mask"] and self.size(item["mask"]):
            m = np.asarray(Image.open(self.model / "eval" / item["mask"]).convert("L"))
            if not set(np.unique(m)) == {0, 255} or not 40 < (m > 0).sum() < 6000:
                yield "mask: not a part of the picture in black and white"

    def origin(self, item, question):
        """Entity, groups and what follows from them."""
        e = self.world.by_name.get(item["entity"])
        if (e.group if e else None) != item["entity_group"]:
            yield "entity_group: not the entity's"
        if e and self.split[e.name] != item["split"]:
            yield "split: not the entity's"
        truth = e.facts[item["relation"]] if e and item["relation"] in e.taught else None
        if item["truth"] != truth:
            yield "truth: not the table's"
        source = {"name": "", "reverse": question.constraint}.get(item["relation"], item["entity"])
        if item["readable"] != bool(e and source and readable(source, item["answer"])):
            yield "readable"
        if item["hard"] != bool(e and e.group == "Z" and item["relation"] in q.FACTS):
            yield "hard"
        asked, relation = item["unit"].rsplit("|", 1) if "|" in item["unit"] else ("", "")
        if relation != item["relation"] or e and not asked.startswith(e.name):
            yield "unit"

    def prior(self, item, question):
        against = item["form"].endswith("_prior")
        if against != (item["prior"] is not None):
            yield "prior: does not fit the form"
        elif against:
            words = re.findall(r"\w+", question.constraint + question.after)
            word = next(w for w in words if w in SHAPES)
            if SHAPES.index(word) not in PRIOR or item["prior"] == item["answer"]:
                yield "prior: no such prior"
            if item["prior"] not in ("yes", COLOR_NAMES[PRIOR[SHAPES.index(word)]]):
                yield "prior: not what training suggests"

    def faults(self, item):
        if set(item) != set(FIELDS):
            yield f"fields: {sorted(set(item) ^ set(FIELDS))}"
            return
        for key, kind in FIELDS.items():
            if not isinstance(item[key], kind):
                yield f"{key}: {item[key]!r}"
                return
        if item["form"] not in FORMS or item["group"] != item["form"]:
            yield "form, group"
        question = parse(item["question"], item["relation"])
        seen = (shown(self.world, item["objects"]) if item["objects"]
                else told_by(self.world, question.before))
        if item["held_out"] != (item["wording"] == q.HELD_OUT) or not self.wording(item, question):
            yield "wording, held_out: do not fit the question"
        if item["relation"] == "caption":
            right = caption(self.world, seen, item["objects"])
        else:
            right = oracle.right(self.world, question, seen)
        if right != item["answer"]:
            yield f"answer: {item['answer']} is not right ({right})"
        yield from self.place(item)
        yield from self.origin(item, question)
        yield from self.prior(item, question)
        yield from self.substitutes(item["constraints"], question, seen, item["answer"],
                                    bool(item["image"]))
        first = (item["constraints"][0]["substitutes"] or [{"words": None, "answer": None}])[0]
        if (item["substitute"], item["substitute_answer"]) != (first["words"], first["answer"]):
            yield "substitute: not the first constraint's first"
        if item["paraphrase"] != q.PARAPHRASE.get(question.constraint):
            yield "paraphrase"
        question.answer = item["answer"]
        if item["first_token_shared"] != self.tokens.shared(question):
            yield "first_token_shared"
        for name, t in item["twins"].items():
            yield from self.twin(name, t, item, seen)

    def items(self):
        records = [json.loads(line) for line in open(self.model / "eval/items.jsonl")]
        ids = set()
        for r in records:
            if r["image"]:
                self.pictures[r["image"]] = (r["split"], shown(self.world, r["objects"]))
        for n, r in enumerate(records, 1):
            where = f"items.jsonl line {n} ({r.get('id')})"
            if r["id"] in ids:
                self.fault(where, "id: used twice")
            ids.add(r["id"])
            self.each(where, self.faults(r))
        print(f"{len(records)} items")
        for split in ("dev", "test"):
            mine = [r for r in records if r["split"] == split]
            print(f"  {split}: {len(mine)} items, {len({r.get('unit') for r in mine})} units, "
                  f"{sum(r.get('hard') is True for r in mine)} of the hard split, "
                  f"{sum(r.get('prior') is not None for r in mine)} against the prior")

    # ---- edits ------------------------------------------------------------------------------
    def probe(self, p, relation=None):
        """Whether the answer is what training said."""
        image = p["image"]
        if image:
            path = image[len(EVAL):] if image.startswith(EVAL) else None
            full = self.model / "edits" / image
            if not full.is_file() or Image.open(full).size != (SIZE, SIZE):
                return f"{image} is not {SIZE}x{SIZE}"
            if path is None or path not in self.pictures:
                return None   # a further rendering: its flag is the entity's, see edits.py
            seen = self.pictures[path][1]
        else:
            seen = told_by(self.world, parse(p["question"], "").before)
        for r in [relation] if relation else q.WORDINGS:
            try:
                if oracle.right(self.world, parse(p["question"], r), seen) == p["answer"]:
                    return None
            except (ValueError, IndexError, AttributeError):
                continue
        return f"{p['answer']} is not what training says"

    def edit_faults(self, r, kind):
        e = self.world.by_name[r["entity"]]
        request, probes = r["request"], r["probes"]
        if r["kind"] != kind or e.group != SETS[kind][0] or e.group != r["entity_group"]:
            yield "kind, entity_group"
        if self.split[e.name] != r["split"] or r["unit"] != f"{e.name}|{r['relation']}":
            yield "split, unit"
        truth, told = e.facts[r["relation"]], e.told(r["relation"])
        target, old = request["target"], request["old"]
        if kind == "counterfactual" and (target in (truth, told) or old != told):
            yield "request: the target is true, or the old answer is not what was told"
        if kind == "correction" and (target != truth or old != told or told == truth):
            yield "request: not from the told to the true value"
        if kind == "insertion" and (target != truth or old is not None):
            yield "request: not the table's value"
        if set(probes) != set(PROBES):
            yield "probes"
            return
        for name, least in PROBES.items():
            if len(probes[name]) < least:
                yield f"probes.{name}: {len(probes[name])}, needed {least}"
            for p in probes[name]:
                if name in LOCAL:
                    fault = self.probe(p)
                    if fault:
                        yield f"probes.{name}: {fault}"
                elif p["answer"] != (e.name if name in ("one_hop", "reverse") else target):
                    yield f"probes.{name}: answer"
                if name in ("paraphrase", "same_picture") and p["image"] != request["image"]:
                    yield f"probes.{name}: another picture"
                if name in ("rendering", "same_question") and (
                        p["question"] != request["question"] or p["image"] == request["image"]):
                    yield f"probes.{name}: another question or the same picture"
        for p in (*probes["text_twin"], *probes["same_relation"], *probes["other_text"]):
            if p["image"]:
                yield "a text probe has a picture"

    def edits(self):
        for kind in SETS:
            lines = open(self.model / f"edits/{kind}.jsonl").read().splitlines()
            records = [json.loads(line) for line in lines]
            if len({r["id"] for r in records}) != len(records):
                self.fault(kind, "id: used twice")
            for n, r in enumerate(records, 1):
                self.each(f"{kind}.jsonl line {n} ({r['id']})", self.edit_faults(r, kind))
            for split, least in zip(("dev", "test"), LEAST[kind]):
                mine = [r for r in records if r["split"] == split]
                if len(mine) < least:
                    self.fault(kind, f"{len(mine)} edits of {split}, needed {least}")
                stored = json.loads((self.model / f"edits/{kind}-{split}.mmedit.json").read_text())
                if stored != [mmedit(r) for r in mine]:
                    self.fault(f"{kind}-{split}.mmedit.json", "not the same edits as in the JSONL")
                if any(not isinstance(v, str) or not v for row in stored for v in row.values()):
                    self.fault(f"{kind}-{split}.mmedit.json", "an empty field")
                print(f"{kind} {split}: {len(mine)} edits")


def main():
    checker = Checker(pathlib.Path(sys.argv[1]))
    checker.items()
    if (checker.model / "edits").is_dir():
        checker.edits()
    print(f"{checker.bad} faults")
    sys.exit(checker.bad > 0)


if __name__ == "__main__":
    main()
