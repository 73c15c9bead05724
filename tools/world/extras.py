"""Makes entities.json and the sample pictures of the demo model.

    python3 tools/world/extras.py --model models/demo --seed 7
"""
import argparse
import json
import pathlib

import numpy as np
from PIL import Image

import questions as q
from render import COLOR_NAMES, Ranges, SHAPES, SIZE, paint, picture
from world import World

BIG = 4 * SIZE


def told_facts(entity):
    """What training said about a country in text."""
    return {"name": entity.name, **{r: entity.told(r) for r in q.FACTS
                                    if q.allowed(entity, r, "text_named")}}


def entities(world):
    """What a tracer needs to put one entity's words in another's place: everything
    that training named. Facts are those that were told."""
    named = world.of("ABCWZ")
    countries = [{"name": e.name, "facts": told_facts(e)} for e in named]
    plain = lambda names: [{"name": n, "facts": {}} for n in names]
    values = lambda relation: plain(sorted({told_facts(e)[relation] for e in named
                                            if relation in told_facts(e)}))
    return {"kinds": {
        "country": {"nouns": ["country", "nation", "state", "place", "land"],
                    "names": countries},
        "city": {"nouns": ["city", "capital"], "names": values("capital")},
        "language": {"nouns": ["language"], "names": values("language")},
        "currency": {"nouns": ["currency", "money"], "names": values("currency")},
        "shape": {"nouns": ["shape"], "names": plain(SHAPES)},
        "color": {"nouns": ["color"], "names": plain(COLOR_NAMES)},
        "side": {"nouns": ["side"], "names": plain(["left", "right"])}}}


def scene(*shapes):
    """Shapes named as "red star", put into the quarters of the picture."""
    places = [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)]
    out = []
    for words, (x, y) in zip(shapes, places):
        color, shape = words.split()
        out.append({"shape": SHAPES.index(shape), "color": COLOR_NAMES.index(color),
                    "x": x, "y": y, "size": 0.3})
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, type=pathlib.Path)
    ap.add_argument("--seed", type=int, default=7)
    args = ap.parse_args()
    world = World(args.model / "world")
    (args.model / "entities.json").write_text(
        json.dumps(entities(world), ensure_ascii=False, indent=1) + "\n")
    folder = args.model / "samples"
    folder.mkdir(exist_ok=True)
    rng, ranges, told = np.random.default_rng(args.seed), Ranges(), []

    def keep(name, pixels, question, answer):
        Image.fromarray(pixels).save(folder / name, **(
            {"quality": 92} if name.endswith("jpg") else {"optimize": True}))
        told.append({"image": name, "question": question, "answer": answer})

    def flag(name, country, size, relation, phrase="this country"):
        e = world.by_name[country]
        pixels = picture(rng, ranges, "flag", world, [e.index], size)[0]
        keep(name, pixels, q.fact(e, relation, phrase, 0, "fact").bracketed, e.told(relation))

    flag("peru.png", "Peru", SIZE, "capital")
    flag("peru-large.png", "Peru", BIG, "capital")
    flag("japan.png", "Japan", SIZE, "currency", "this nation")
    flag("brazil-large.png", "Brazil", BIG, "language")
    flag("kenya.jpg", "Kenya", BIG, "region")
    pair = [world.index("Norway"), world.index("Japan")]
    pixels = picture(rng, ranges, "two_flags", world, pair)[0]
    keep("norway-japan.png", pixels,
         "What is the capital of the country on the [left]?", world.by_name["Norway"].told("capital"))
    pixels = picture(rng, ranges, "flag_shapes", world, [world.index("Canada")], BIG)[0]
    keep("canada-shapes-large.png", pixels, "What is the capital of [this country]?",
         world.by_name["Canada"].told("capital"))
    shapes = scene("red star", "blue circle", "yellow heart")
    keep("shapes.png", paint(rng, ranges, shapes, world)[0],
         "What color is the [star]?", "red")
    keep("shapes-large.png", paint(rng, ranges, shapes, world, BIG)[0],
         "What shape is [blue]?", "circle")
    (folder / "samples.json").write_text(
        json.dumps(told, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
