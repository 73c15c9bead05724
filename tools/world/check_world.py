"""Checks the world's files and the training generator against docs/world.md.

    python3 tools/world/check_world.py --model models/demo --draws 50000
    python3 tools/world/check_world.py --model models/demo --packages DIR   (and rebuild)

Prints one line a check, "ok" or "FAULT", with the measured number.
"""
import argparse
import filecmp
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from tokenizers import Tokenizer

import countries
import invented
import questions as q
from render import (COLOR_NAMES, KINDS, PRIOR, PRIOR_SHARE, Ranges, SHAPES, draw_shapes, layout,
                    picture)
from world import World

MIX = [0.28, 0.32, 0.22, 0.15, 0.03]   # of the picture kinds, as in training
SIZES = {"A": 204, "B": 60, "C": 60, "D": 20, "W": 70, "Z": 60}
FILES = ["countries.json", "invented.json", "groups.json", "flags.png", "dropped.json"]


class Report:
    def __init__(self):
        self.faults = 0

    def say(self, good, text):
        self.faults += not good
        print(("ok     " if good else "FAULT  ") + text)

    def least(self, value, limit, text):
        self.say(value >= limit, f"{text}: {value:.3f} (at least {limit})")


def private(world, groups):
    """Strings that only entities of these groups have: names, and facts that no
    other entity has."""
    others, mine = set(), set()
    for e in world.entities:
        for r in ("name", "capital", "demonym"):
            if e.told(r):
                (mine if e.group in groups else others).add(e.told(r))
    return mine - others


def check_table(world, report):
    for group, n in SIZES.items():
        report.say(len(world.of(group)) == n, f"group {group}: {len(world.of(group))} entities")
    names = [e.name for e in world.entities]
    report.say(len(set(names)) == len(names), f"{len(names)} names, all different")
    capitals = [e.told("capital") for e in world.entities if e.told("capital")]
    report.say(len(set(capitals)) == len(capitals), "told capitals are 1:1")
    wrong = [(e, r) for e in world.entities for r in e.taught]
    report.say(all(e.taught[r] != e.facts[r] for e, r in wrong), "wrong facts are wrong")
    report.least(len(wrong), 280, "facts taught wrongly")
    insert = sum(1 for e in world.of("C") for r in q.FACTS if e.facts[r])
    report.least(insert, 300, "facts of group C to insert")
    made = {w for e in world.entities if e.source == "invented" for w in (e.name, e.facts["capital"])}
    real = {w for e in world.entities if e.source == "real" for w in (e.name, e.facts["capital"])}
    report.say(not made & real, "no invented name is a real one of the table")
    weights = [e.weight for e in world.of("A")]
    report.say(min(weights) >= max(weights) / 8, "rarest of A at least 1/8 of the commonest")
    for e in world.entities:
        for n in e.neighbours:
            if e.name not in world.by_name[n].neighbours:
                report.say(False, f"{e.name} and {n} are neighbours one way only")


def check_flags(world, report):
    small = np.stack([countries.small(f) for f in world.flags])
    flat = small.reshape(len(small), -1)
    real = sum(e.source == "real" for e in world.entities)
    least = {"real": 9.0, "invented": 9.0}
    for i in range(1, len(flat)):
        gap = float(np.sqrt(((flat[:i] - flat[i]) ** 2).mean(1)).min())
        kind = "real" if i < real else "invented"
        least[kind] = min(least[kind], gap)
    # The atlas has the very pixels that were compared when it was built.
    report.least(least["real"], countries.MIN_DISTANCE, "nearest pair of real flags, RMS")
    report.least(least["invented"], invented.MIN_DISTANCE, "nearest other flag of an invented one")


def check_tokens(world, tok, report):
    length = lambda s: len(tok.encode(" " + s, add_special_tokens=False).ids)
    share = lambda values: sum(length(v) > 1 for v in values) / len(values)
    report.least(share([e.name for e in world.entities]), 0.5, "names of two tokens or more")
    for r in q.FACTS:
        values = {e.told(r) for e in world.entities} - {None}
        print(f"       {r}: {len(values)} values, {share(values):.2f} of two tokens or more")
    answers = [e.told(r) for e in world.entities for r in q.FACTS if e.told(r)]
    report.least(share(answers), 0.5, "answers of two tokens or more")
    single = SHAPES + COLOR_NAMES + ["left", "right", "none", "yes", "no"]
    report.say(all(length(w) == 1 for w in single), "shape, colour and side words are one token")
    report.say(all(length(d) == 1 for d in "0123456789"), "digits are one token each")
    report.say(all(2 <= length(v) <= 7 for v in q.VISUAL),
               f"{len(q.VISUAL)} visual constraints of 2 to 7 tokens")
    vocabulary = tok.get_vocab_size()
    report.say(2000 <= vocabulary <= 3000, f"vocabulary {vocabulary}")
    back = [v for v in answers if tok.decode(tok.encode(" " + v).ids) != " " + v]
    report.say(not back, "answers survive encoding and decoding")


class Faults:
    """What one training question must not be."""

    def __init__(self, world):
        self.world = world
        self.never = private(world, "D")
        self.untold = {e.facts["capital"] for e in world.of("C")}
        self.capitals = {e.told("capital"): e for e in world.entities if e.group != "C"}

    def of(self, question, objects=None):
        e = self.world.by_name.get(question.entity)
        told = {o["shape"] for o in objects or () if "shape" in o}
        if question.wording == q.HELD_OUT:
            yield "held-out wording"
        pictured = question.group in q.PICTURE_FORMS
        if e and question.relation not in ("name", "caption") and (
                e.group in "CD" or (e.group == "B" and pictured)
                or (e.group == "Z" and question.relation == "reverse")):
            yield f"{e.group} asked for {question.relation} as {question.group}"
        answer = self.world.by_name.get(question.answer)
        if pictured and question.group == "two_facts" and answer and answer.group != "A":
            yield f"answer of group {answer.group} to a question with a picture"
        for value in (question.answer, question.constraint):
            if value in self.never:
                yield f"says {value}, of group D"
            if value in self.untold:
                yield f"says {value}, a fact of group C"
        if e and question.relation in q.FACTS and question.answer != e.told(question.relation):
            yield "answer is not the told one"
        if question.relation == "reverse" and self.capitals[question.constraint] is not e:
            yield "capital of another country"
        if question.answer in ("none", "no") and question.relation in ("color", "exists"):
            words = (question.constraint + question.after).replace("?", "").split()
            for s in PRIOR:
                if SHAPES[s] in words and s not in told:
                    yield f"asks for a missing {SHAPES[s]}"


def draw_all(world, report, draws, seed):
    rng, ranges, faults = np.random.default_rng(seed), Ranges(), Faults(world)
    counts, kinds, prior, found, flags = {}, {}, {s: [0, 0] for s in PRIOR}, {}, {}

    def add(question, objects=None):
        counts[question.group] = counts.get(question.group, 0) + 1
        for fault in faults.of(question, objects):
            found[fault] = found.get(fault, 0) + 1

    def colors(objects):
        for o in objects:
            if o.get("shape") in PRIOR:
                prior[o["shape"]][0] += o["color"] == PRIOR[o["shape"]]
                prior[o["shape"]][1] += 1

    n = 0
    while n < draws:
        asked, told = q.draw_texts(rng, world)
        n += len(asked)
        for name in faults.never:
            if told and name in told.split("flag of ", 1)[-1]:
                found["told of group D"] = found.get("told of group D", 0) + 1
        for question in asked:
            add(question)
    texts, steps = n, np.cumsum(MIX)
    counts_text = dict(counts)
    counts.clear()
    for _ in range(draws // 10):
        kind = KINDS[min(int(np.searchsorted(steps, rng.random())), len(KINDS) - 1)]
        objects = layout(rng, ranges, kind, world)
        kinds[kind] = kinds.get(kind, 0) + 1
        colors(objects)
        for o in objects:
            if "flag" in o:
                group = world.entities[o["flag"]].group
                flags[group] = flags.get(group, 0) + 1
        for stage in (2, 3):
            for _ in range(2 if stage == 2 else 8):
                question = q.draw_visual(rng, world, kind, objects, stage)
                if stage == 3:
                    add(question, objects)
                elif question.relation not in ("name", "caption"):
                    found["stage 2 asks more than names"] = 1
    for _ in range(draws // 5):
        colors([{"shape": s, "color": c} for s, c in draw_shapes(rng, 3, PRIOR_SHARE)])
    total = sum(counts.values())
    for fault, times in found.items():
        report.say(False, f"{fault}: {times} times")
    report.say(not found, f"{texts} questions by text and {total} by picture keep the rules")
    report.say("D" not in flags, "no flag of group D was shown")
    flagged = kinds["flag"] + kinds["two_flags"] + kinds["flag_shapes"]
    report.least(kinds["two_flags"] / flagged, 0.30, "flag pictures with two flags")
    named = counts_text["text_named"] * total / texts   # as many texts as picture questions
    report.least(counts["named_over"] / (named + counts["named_over"]), 0.30,
                 "named questions over another picture")
    report.least(counts["absent"] / total, 0.05, "picture questions for something absent")
    for s, (hits, all_) in prior.items():
        report.say(abs(hits / all_ - PRIOR_SHARE) < 0.03,
                   f"{SHAPES[s]} is {COLOR_NAMES[PRIOR[s]]} in {hits / all_:.3f} of training")
    for group in sorted(counts):
        print(f"       {group}: {counts[group] / total:.3f} of the picture questions")
    for group in sorted(counts_text):
        print(f"       {group}: {counts_text[group] / texts:.3f} of the text questions")


def check_repeat(world, report):
    def once():
        rng = np.random.default_rng(9)
        asked = [x.text for _ in range(200) for x in q.draw_texts(rng, world)[0]]
        drawn = [picture(rng, Ranges(), kind, world)[0].tobytes() for kind in KINDS]
        return asked, drawn
    report.say(once() == once(), "the same seed draws the same questions and pixels")


def check_rebuild(folder, packages, seed, report):
    with tempfile.TemporaryDirectory() as other:
        script = pathlib.Path(__file__).with_name("build.py")
        subprocess.run([sys.executable, str(script), "--packages", str(packages), "--out", other,
                        "--seed", str(seed)], check=True, capture_output=True)
        _, differ, lacking = filecmp.cmpfiles(folder, other, FILES, shallow=False)
        report.say(not differ and not lacking,
                   "rebuilt byte for byte" if not differ else f"rebuilt otherwise: {differ}")


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, type=pathlib.Path)
    ap.add_argument("--packages", type=pathlib.Path, help="also rebuild and compare")
    ap.add_argument("--draws", type=int, default=50000)
    ap.add_argument("--seed", type=int, default=77)
    args = ap.parse_args()
    world, report = World(args.model / "world"), Report()
    check_table(world, report)
    check_flags(world, report)
    check_tokens(world, Tokenizer.from_file(str(args.model / "tokenizer.json")), report)
    draw_all(world, report, args.draws, args.seed)
    check_repeat(world, report)
    if args.packages:
        check_rebuild(args.model / "world", args.packages, world.seed, report)
    print(f"{report.faults} faults")
    sys.exit(report.faults > 0)


if __name__ == "__main__":
    main()
