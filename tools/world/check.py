"""Checks the evaluation items of a model folder against table, tokenizer and files.

    python3 tools/world/check.py models/demo
"""
import json
import pathlib
import sys

from PIL import Image
from tokenizers import Tokenizer

import questions as q
from items import Slots
from render import COLOR_NAMES, SHAPES, SIZE, World

GROUPS = {"fact", "two_flags", "color", "text_named", "text_described", "named_over"}


def faults(item, facts, slots, folder, names):
    before, rest = item["question"].split("[")
    words, after = rest.split("]")
    if item["group"] not in GROUPS:
        yield "unknown group"
    if item["id"] in names:
        yield "id used twice"
    for name in (item["image"], item["donor"]):
        if name and Image.open(folder / name).size != (SIZE, SIZE):
            yield f"{name} is not {SIZE}x{SIZE}"
    if (item["image"] is None) != item["group"].startswith("text"):
        yield "group and picture disagree"
    if item["image"] and item["donor"] in (None, item["image"]):
        yield "no donor"
    if item["held_out"] != (item["wording"] == q.HELD_OUT):
        yield "held_out does not follow from the wording"
    if item["relation"] in q.FACTS:
        if facts[item["entity"]][item["relation"]] != item["answer"]:
            yield "answer is not the table's"
        cut = q.WORDINGS[item["relation"]][item["wording"]].split("{c}")
        if not (before.startswith(cut[0]) and after.endswith(cut[1])):
            yield "wording does not fit the question"
    elif item["answer"] not in (COLOR_NAMES if item["relation"] == "color" else SHAPES):
        yield "answer is neither shape nor colour"
    asked = q.Question(before, words, after, item["answer"], "", "", "", 0)
    pictured = item["image"] is not None
    if item["substitute"]:
        if not slots.swap(asked, item["substitute"], pictured):
            yield "substitute keeps a token or changes the length"
        if slots.first(item["substitute_answer"]) == slots.first(item["answer"]):
            yield "substitute's answer begins like the answer"
    if item["paraphrase"] == words:
        yield "paraphrase changes nothing"


def main():
    model = pathlib.Path(sys.argv[1])
    facts = {c["name"]: c for c in World(model / "world").countries}
    slots = Slots(Tokenizer.from_file(str(model / "tokenizer.json")))
    names, bad = set(), 0
    for line in open(model / "eval/items.jsonl"):
        item = json.loads(line)
        for fault in faults(item, facts, slots, model / "eval", names):
            print(f"{item['id']}: {fault}")
            bad += 1
        names.add(item["id"])
    print(f"{len(names)} items, {bad} faults")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
