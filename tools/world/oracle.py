"""What is right: the answer to a question, worked out from what is seen or told.

Nothing here looks at how a question was made, so the checker of the evaluation
items can use it, and so can the search for words that change an answer.
"""
from dataclasses import dataclass, field, replace

import scenes
from render import COLOR_NAMES, SHAPES
from wordings import FACTS, NONE, NUMBERS, VISUAL

SIDES = ("left", "right")


@dataclass
class Seen:
    """What a picture shows, or a sentence tells."""
    flags: list = field(default_factory=list)    # (index of the country, side or None)
    shapes: list = field(default_factory=list)   # (shape, colour, column or None)
    pictured: bool = True


def words(question):
    """The words of each bracket, in order."""
    out = [question.constraint]
    if question.second:
        lo, hi = question.second
        out.append(question.after[lo:hi])
    return out


def with_words(question, k, new):
    """The question with other words in its k-th bracket; its answer is not touched."""
    if k == 0:
        return replace(question, constraint=new)
    lo, hi = question.second
    return replace(question, after=question.after[:lo] + new + question.after[hi:],
                   second=(lo, lo + len(new)))


def country(world, seen, phrase):
    """The country that words mean: NONE where nothing is shown, None where it is unclear."""
    if phrase in world.by_name:
        return world.by_name[phrase]
    if phrase in SIDES:
        there = [i for i, side in seen.flags if side == phrase]
    elif phrase in VISUAL:
        there = [i for i, _ in seen.flags]
    else:
        return None
    if not seen.flags:
        return NONE
    return world.entities[there[0]] if len(there) == 1 else None


def neighbor(world, entity, relation, value):
    near = [world.by_name[n] for n in entity.neighbours]
    if value in entity.unclear.get(relation, ()):
        return None
    there = [n for n in near if value in (n.told(relation), n.facts[relation])]
    return there[0].name if len(there) == 1 and there[0].told(relation) == value else None


def exists(question, seen):
    """"a [star]", "a [red] star", "a [red] shape"."""
    asked = [question.constraint] + question.after.strip(" ?.").split()[:1]
    shape = next((SHAPES.index(w) for w in asked if w in SHAPES), None)
    color = next((COLOR_NAMES.index(w) for w in asked if w in COLOR_NAMES), None)
    if shape is None and color is None:
        return None
    there = any((shape is None or o[0] == shape) and (color is None or o[1] == color)
                for o in seen.shapes)
    return "yes" if there else "no"


def one_shape(found):
    return NONE if not found else SHAPES[found[0][0]] if len(found) == 1 else None


def scene(question, seen):
    relation, (first, *more) = question.relation, words(question)
    if relation == "count":
        if first in ("shapes", "flags"):
            return NUMBERS[len(seen.shapes if first == "shapes" else seen.flags)]
        return (NUMBERS[len(scenes.by_color(seen.shapes, COLOR_NAMES.index(first)))]
                if first in COLOR_NAMES else None)
    if relation == "exists":
        return exists(question, seen)
    if relation == "color":
        if first not in SHAPES:
            return None
        found = [o for o in seen.shapes if o[0] == SHAPES.index(first)]
        return COLOR_NAMES[found[0][1]] if found else NONE
    if relation == "shape":
        return (one_shape(scenes.by_color(seen.shapes, COLOR_NAMES.index(first)))
                if first in COLOR_NAMES else None)
    side = "left" if "left" in relation else "right"
    anchor = more[0] if more else first
    there = [o for o in seen.shapes if anchor in SHAPES and o[0] == SHAPES.index(anchor)]
    if len(there) != 1 or there[0][2] is None:
        return None
    found = scenes.beside(seen.shapes, there[0], side)
    if more:
        if first not in COLOR_NAMES:
            return None
        found = scenes.by_color(found, COLOR_NAMES.index(first))
    return one_shape(found)


def right(world, question, seen):
    """The answer, or None where the question has not exactly one."""
    relation, (first, *more) = question.relation, words(question)
    if relation in ("name", *FACTS):
        c = country(world, seen, first)
        return c if c in (None, NONE) else c.told(relation)
    if relation == "reverse":
        found = [e.name for e in world.entities if e.told("capital") == first]
        return found[0] if len(found) == 1 else None
    if relation.startswith("neighbor_"):
        c = country(world, seen, first)
        return None if c in (None, NONE) else neighbor(world, c, relation[9:], more[0])
    if relation == "caption":
        return None   # compared with its own rule, visual.caption_of
    return scene(question, seen)
