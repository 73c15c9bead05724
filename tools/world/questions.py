"""The questions of the demo world, for training and for the evaluation set.

A question keeps its constraint words apart: the words that decide the answer
and that a causal trace corrupts. `{c}` below stands for them.
"""
from dataclasses import dataclass

import numpy as np

from render import COLOR_NAMES, SHAPES

HELD_OUT = 5   # the last wording of every relation is never used in training
WORDINGS = {
    "name": ["What is the name of {c}?", "What is {c} called?", "Name {c}.",
             "Tell me the name of {c}.", "Which name does {c} have?",
             "How is {c} called?"],
    "capital": ["What is the capital of {c}?", "Which city is the capital of {c}?",
                "Name the capital of {c}.", "What is the capital city of {c}?",
                "Tell me the capital of {c}.", "Tell me which city is the capital of {c}."],
    "continent": ["On which continent is {c}?", "Which continent is {c} in?",
                  "What is the continent of {c}?", "Name the continent of {c}.",
                  "Which continent does {c} belong to?", "Tell me the continent of {c}."],
    "currency": ["What is the currency of {c}?", "Which currency is used in {c}?",
                 "What money do people use in {c}?", "Name the currency of {c}.",
                 "With which money do people pay in {c}?", "Tell me the currency of {c}."],
    "language": ["What is the language of {c}?", "Which language is spoken in {c}?",
                 "What language do people speak in {c}?", "Name the language of {c}.",
                 "In which language do people talk in {c}?", "Tell me the language of {c}."],
    "color": ["What color is the {c}?", "Which color is the {c}?",
              "What is the color of the {c}?", "Which color does the {c} have?",
              "Name the color of the {c}.", "Tell me the color of the {c}."],
    "shape": ["What shape is {c}?", "Which shape is {c}?", "Name the shape that is {c}.",
              "What is the shape that is {c}?", "Which shape has the color {c}?",
              "Tell me the shape that is {c}."],
}
FACTS = ["name", "capital", "continent", "currency", "language"]
FACT_WEIGHTS = {"name": 0.8, "capital": 1.6, "continent": 1.0, "currency": 1.5,
                "language": 1.2}
VISUAL = ["this country", "this nation", "this state", "this place", "this land",
          "the country shown", "the nation shown", "the country in the picture",
          "the nation in the picture", "the state in the picture",
          "the country with this flag"]
# The first two are the commonest, and equal: one is the paraphrase of the other.
VISUAL_WEIGHTS = np.array([4, 4, 2, 2, 1, 1.5, 1, 1.5, 1, 1, 1.0])
VISUAL_WEIGHTS /= VISUAL_WEIGHTS.sum()
PARAPHRASE = {"this country": "this nation", "this nation": "this country",
              "this state": "this place", "this place": "this state",
              "the country shown": "the nation shown"}
SIDED = ["the country on the {s}", "the nation on the {s}", "the state on the {s}",
         "the {s} country", "the {s} nation"]
SCENE_INTRO = ["There is {}.", "The picture shows {}.", "I see {}."]


@dataclass
class Question:
    before: str
    constraint: str
    after: str
    answer: str
    group: str
    relation: str
    entity: str
    wording: int

    @property
    def text(self):
        return self.before + self.constraint + self.after

    @property
    def bracketed(self):
        return f"{self.before}[{self.constraint}]{self.after}"


def known(country):
    return [r for r in FACTS if country[r]]


def draw_relation(rng, country, skip=()):
    names = [r for r in known(country) if r not in skip]
    w = np.array([FACT_WEIGHTS[r] for r in names])
    return names[rng.choice(len(names), p=w / w.sum())]


def draw_wording(rng):
    return int(rng.integers(HELD_OUT))


def fact(country, relation, phrase, wording, group):
    """A question about a country; brackets inside `phrase` narrow the constraint."""
    before, after = WORDINGS[relation][wording].split("{c}")
    head, constraint, tail = "", phrase, ""
    if "[" in phrase:
        head, rest = phrase.split("[")
        constraint, tail = rest.split("]")
    if not before and not head:
        constraint = constraint[0].upper() + constraint[1:]
    return Question(before + head, constraint, tail + after, country[relation], group,
                    relation, country["name"], wording)


def side_phrase(rng, side):
    return SIDED[rng.integers(len(SIDED))].format(s=f"[{side}]")


def about_shape(shape, relation, wording, group, context=""):
    names = {"shape": SHAPES[shape["shape"]], "color": COLOR_NAMES[shape["color"]]}
    given = "shape" if relation == "color" else "color"
    before, after = WORDINGS[relation][wording].split("{c}")
    return Question(context + before, names[given], after, names[relation], group,
                    relation, names[given], wording)


def article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def described_scene(rng):
    """A scene told in words: the objects and the sentence that lists them."""
    n = int(rng.integers(2, 5))
    kinds = rng.choice(len(SHAPES), n, replace=False)
    colors = rng.choice(len(COLOR_NAMES), n, replace=False)
    objects = [{"shape": int(s), "color": int(c)} for s, c in zip(kinds, colors)]
    parts = [article(f"{COLOR_NAMES[o['color']]} {SHAPES[o['shape']]}") for o in objects]
    told = ", ".join(parts[:-1]) + " and " + parts[-1]
    return objects, SCENE_INTRO[rng.integers(3)].format(told) + " "


def draw_named(rng, world, group, avoid=(), skip=()):
    free = [c for i, c in enumerate(world.countries) if i not in avoid]
    country = free[rng.integers(len(free))]
    return fact(country, draw_relation(rng, country, skip), country["name"],
                draw_wording(rng), group)


def draw_texts(rng, world):
    """Training questions without a picture, and the sentence that they share.

    A told scene comes with every question that it answers: that teaches which
    colour goes with which shape far sooner than one question a scene does.
    """
    if rng.random() < 0.5:
        return [draw_named(rng, world, "text_named")], ""
    objects, told = described_scene(rng)
    asked = [(o, r) for o in objects for r in ("color", "shape")]
    return [about_shape(o, r, draw_wording(rng), "text_described", told)
            for o, r in (asked[i] for i in rng.permutation(len(asked)))], told


def draw_visual(rng, world, kind, objects, named_share=0.35):
    """A training question about one picture."""
    flags = [o for o in objects if "flag" in o]
    shapes = [o for o in objects if "shape" in o]
    if rng.random() < (0.12 if kind == "shapes" else named_share):
        return draw_named(rng, world, "named_over", {o["flag"] for o in flags})
    if shapes and (not flags or rng.random() < 0.5):
        relation = "color" if rng.random() < 0.65 else "shape"
        return about_shape(shapes[rng.integers(len(shapes))], relation,
                           draw_wording(rng), "color")
    chosen = flags[rng.integers(len(flags))]
    country = world.countries[chosen["flag"]]
    if chosen["side"]:
        phrase, group = side_phrase(rng, chosen["side"]), "two_flags"
    else:
        phrase, group = VISUAL[rng.choice(len(VISUAL), p=VISUAL_WEIGHTS)], "fact"
    return fact(country, draw_relation(rng, country), phrase, draw_wording(rng), group)
