"""The words of the demo world's questions, and the rule what training may ask.

A question keeps its constraint words apart: the words that decide the answer
and that a causal trace corrupts. `{c}` stands for them, `{v}` for those of a
second constraint.
"""
from dataclasses import dataclass

from render import COLOR_NAMES, PRIOR, SHAPES  # noqa: F401
from world import Weighted

HELD_OUT = 5   # the last wording of every relation is never used in training
WORDINGS = {
    "name": ["What is the name of {c}?", "What is {c} called?", "Name {c}.",
             "Tell me the name of {c}.", "Which name does {c} have?",
             "How is {c} called?"],
    "capital": ["What is the capital of {c}?", "Which city is the capital of {c}?",
                "Name the capital of {c}.", "What is the capital city of {c}?",
                "Tell me the capital of {c}.", "Tell me which city is the capital of {c}."],
    "region": ["In which region is {c}?", "Which region is {c} in?",
               "What is the region of {c}?", "Name the region of {c}.",
               "Which region does {c} belong to?", "Tell me the region of {c}."],
    "currency": ["What is the currency of {c}?", "Which currency is used in {c}?",
                 "What money do people use in {c}?", "Name the currency of {c}.",
                 "With which money do people pay in {c}?", "Tell me the currency of {c}."],
    "language": ["What is the language of {c}?", "Which language is spoken in {c}?",
                 "What language do people speak in {c}?", "Name the language of {c}.",
                 "In which language do people talk in {c}?", "Tell me the language of {c}."],
    "code": ["What is the calling code of {c}?", "Which calling code does {c} have?",
             "Which number do you dial to call {c}?", "Name the calling code of {c}.",
             "With which code do people call {c}?", "Tell me the calling code of {c}."],
    "demonym": ["What is the demonym of {c}?", "What are people from {c} called?",
                "What do you call a person from {c}?", "Name the demonym of {c}.",
                "Which demonym does {c} have?", "Tell me the demonym of {c}."],
    "reverse": ["Which country has the capital {c}?", "Of which country is {c} the capital?",
                "What is the country with the capital {c}?",
                "Name the country that has the capital {c}.",
                "In which country is the capital {c}?", "Tell me the country of the capital {c}."],
    "neighbor_language": ["Which neighbor of {c} speaks {v}?",
                          "In which neighbor of {c} do people speak {v}?",
                          "Name the neighbor of {c} that speaks {v}.",
                          "What neighbor of {c} has the language {v}?",
                          "Which neighbor of {c} has people who speak {v}?",
                          "Tell me which neighbor of {c} speaks {v}."],
    "neighbor_currency": ["Which neighbor of {c} uses the {v}?",
                          "In which neighbor of {c} do people pay with the {v}?",
                          "Name the neighbor of {c} that uses the {v}.",
                          "What neighbor of {c} has the currency {v}?",
                          "Which neighbor of {c} has people who use the {v}?",
                          "Tell me which neighbor of {c} uses the {v}."],
    "color": ["What color is the {c}?", "Which color is the {c}?",
              "What is the color of the {c}?", "Which color does the {c} have?",
              "Name the color of the {c}.", "Tell me the color of the {c}."],
    "shape": ["What shape is {c}?", "Which shape is {c}?", "Name the shape that is {c}.",
              "What is the shape that is {c}?", "Which shape has the color {c}?",
              "Tell me the shape that is {c}."],
    "count": ["How many {c} are there?", "How many {c} do you see?",
              "How many {c} does the picture show?", "Count the {c}.",
              "What is the number of {c}?", "Tell me how many {c} there are."],
    "exists": ["Is there {c}?", "Do you see {c}?", "Does the picture show {c}?",
               "Is there {c} in the picture?", "Can you see {c}?", "Tell me if there is {c}."],
    "caption": ["Describe {c}.", "What does {c} show?", "What do you see in {c}?",
                "What is in {c}?", "Give a caption for {c}.", "Tell me what {c} shows."],
}
for _side in ("left", "right"):
    WORDINGS[_side + "_of"] = [w.replace("SIDE", _side) for w in (
        "What shape is SIDE of the {c}?", "Which shape is SIDE of the {c}?",
        "What is the shape SIDE of the {c}?", "Name the shape SIDE of the {c}.",
        "Which shape stands SIDE of the {c}?", "Tell me the shape SIDE of the {c}.")]
    WORDINGS["color_" + _side + "_of"] = [w.replace("SIDE", _side) for w in (
        "What is the {c} shape SIDE of the {v}?", "Which {c} shape is SIDE of the {v}?",
        "What {c} shape is SIDE of the {v}?", "Name the {c} shape SIDE of the {v}.",
        "Which {c} shape stands SIDE of the {v}?", "Tell me the {c} shape SIDE of the {v}.")]
FACTS = ["capital", "currency", "language", "region", "code", "demonym"]
# How often each is asked; a code has three tokens of its own, a region seven values.
FACT_WEIGHTS = {"name": 0.8, "capital": 1.5, "currency": 1.3, "language": 1.1, "region": 0.7,
                "code": 1.4, "demonym": 0.7}
SCENE_RELATIONS = ["color", "shape", "count", "exists", "left_of", "right_of",
                   "color_left_of", "color_right_of"]
# The first two are the commonest, and equal: one is the paraphrase of the other.
VISUAL = {"this country": 4, "this nation": 4, "this state": 2, "this place": 2, "this land": 1,
          "the country shown": 1.5, "the nation shown": 1, "the country in the picture": 1.5,
          "the nation in the picture": 1, "the state in the picture": 1,
          "the country with this flag": 1}
PARAPHRASE = {"this country": "this nation", "this nation": "this country",
              "this state": "this place", "this place": "this state",
              "the country shown": "the nation shown"}
SIDED = ["the country on the [{s}]", "the nation on the [{s}]", "the state on the [{s}]",
         "the [{s}] country", "the [{s}] nation"]
INTRO = ["There is {}.", "The picture shows {}.", "I see {}."]
TWO_FLAGS = ["The left flag is the flag of {l} and the right flag is the flag of {r}.",
             "On the left is the flag of {l} and on the right is the flag of {r}.",
             "On the right is the flag of {r} and on the left is the flag of {l}.",
             "The flag of {l} is on the left and the flag of {r} is on the right.",
             "The flag of {r} is on the right and the flag of {l} is on the left."]
COLUMNS = [" on the left", " in the middle", " on the right"]
NUMBERS = ["none", "one", "two", "three", "four"]
NONE = "none"
PICTURE_FORMS = ["fact", "two_flags", "named_over", "scene", "two_facts", "two_scene", "absent",
                 "caption"]
TEXT_FORMS = ["text_named", "text_flag", "text_two_flags", "text_scene", "text_two_facts",
              "text_two_scene", "text_absent", "text_caption"]


def _cut(wording):
    before, after = wording.split("{c}")
    return before, after.split("{v}") if "{v}" in after else (after,)


CUT = {r: [_cut(w) for w in ws] for r, ws in WORDINGS.items()}


@dataclass(slots=True)
class Question:
    """`before` + `constraint` + `after` is the text; a told scene stands at the
    start of `before`. `second` gives the place of the second constraint in `after`."""
    before: str
    constraint: str
    after: str
    answer: str
    group: str             # form: one of PICTURE_FORMS or TEXT_FORMS
    relation: str
    entity: str            # country, shape or colour asked about
    wording: int
    members: str = None    # exposure group of the country
    second: tuple = None   # (start, end) in `after`

    @property
    def text(self):
        return self.before + self.constraint + self.after

    @property
    def bracketed(self):
        after = self.after
        if self.second:
            lo, hi = self.second
            after = f"{after[:lo]}[{after[lo:hi]}]{after[hi:]}"
        return f"{self.before}[{self.constraint}]{after}"


def ask(relation, wording, phrase, answer, group, entity, members=None, told="", second=None):
    """A question; brackets inside `phrase` narrow the constraint words."""
    before, rest = CUT[relation][wording]
    constraint, tail = phrase, ""
    if "[" in phrase:
        head, inner = phrase.split("[")
        constraint, tail = inner.split("]")
        before += head
    after, span = tail + rest[0], None
    if second is not None:
        span = (len(after), len(after) + len(second))
        after += second + rest[1]
    return Question(told + before, constraint, after, answer, group, relation, entity, wording,
                    members, span)


def allowed(entity, relation, form):
    """The one rule what training may contain about a country.

    `relation` is "name", "caption", one of FACTS, "reverse" or "neighbor_*", `form`
    one of the two lists of forms."""
    group = entity.group
    if group == "D":
        return False
    if relation in ("name", "caption"):
        return True
    if group == "C":
        return False
    if relation == "reverse":
        if group == "Z" or not entity.told("capital"):
            return False
    elif relation.startswith("neighbor"):
        if group != "A":
            return False
    elif not entity.told(relation) or not entity.exposure[relation]:
        return False
    return group != "B" or form.startswith("text")


def pick(rng, values):
    return values[int(rng.random() * len(values))]


PHRASES = Weighted(VISUAL, VISUAL.values())


def draw_wording(rng):
    return int(rng.random() * HELD_OUT)


def article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def listed(parts):
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def thing(color, shape):
    return article(f"{COLOR_NAMES[color]} {SHAPES[shape]}")


class Tables:
    """What can be drawn, worked out once a world."""

    def __init__(self, world):
        self.world = world
        e = world.entities
        facts = [(c, r) for c in e for r in FACTS if allowed(c, r, "text_named")]
        over = [(c, r) for c, r in facts if allowed(c, r, "named_over")]
        self.named, self.over = self._facts(facts), self._facts(over)
        back = [c for c in e if allowed(c, "reverse", "text_named")]
        self.reverse = Weighted(back, [c.weight for c in back])
        back = [c for c in back if allowed(c, "reverse", "named_over")]
        self.reverse_over = Weighted(back, [c.weight for c in back])
        seen = [c for c in e if c.group != "D"]
        mean = sum(c.weight for c in seen) / len(seen)
        self.told = Weighted(seen, [c.weight + 0.3 * mean for c in seen])
        self.relations = {form: [self._relations(c, form) for c in e]
                          for form in ("text_flag", "fact")}
        self.pairs, self.picture_pairs = world.pairs, world.picture_pairs
        self.pairs_of, self.picture_pairs_of = {}, {}
        for all_pairs, by in ((self.pairs, self.pairs_of),
                              (self.picture_pairs, self.picture_pairs_of)):
            for p in all_pairs:
                by.setdefault(p.entity, []).append(p)

    def _facts(self, facts):
        return Weighted(facts, [c.weight * c.exposure[r] * FACT_WEIGHTS[r] for c, r in facts])

    def _relations(self, c, form):
        names = [r for r in ("name", *FACTS) if allowed(c, r, form)]
        return Weighted(names, [FACT_WEIGHTS[r] * c.exposure[r] for r in names]) if names else None


def tables(world):
    if "questions" not in world.tables:
        world.tables["questions"] = Tables(world)
    return world.tables["questions"]


def fact(entity, relation, phrase, wording, group, told=""):
    return ask(relation, wording, phrase, entity.told(relation), group, entity.name,
               entity.group, told)


def reverse(entity, wording, group, told=""):
    return ask("reverse", wording, entity.told("capital"), entity.name, group, entity.name,
               entity.group, told)


def neighbor(world, pair, phrase, wording, group, told=""):
    entity = world.entities[pair.entity]
    return ask("neighbor_" + pair.relation, wording, phrase, world.entities[pair.answer].name,
               group, entity.name, entity.group, told, pair.value)


def side_phrase(rng, side):
    return pick(rng, SIDED).format(s=side)
