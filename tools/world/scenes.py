"""Questions about scenes of coloured shapes, pictured or told in words.

An object here is (shape, colour, column): indices, and the column 0..2 from the
left, or None in a told scene that says nothing of places. `flags` is how many
flags stand beside the shapes.
"""
from render import COLOR_NAMES, SHAPES
from wordings import (NONE, NUMBERS, PRIOR, Weighted, article, ask, draw_wording, pick)

KINDS = Weighted(["color", "shape", "side", "two", "count", "exists"],
                 [0.38, 0.16, 0.16, 0.13, 0.09, 0.08])
ABSENT = Weighted(["color", "shape", "side"], [0.6, 0.25, 0.15])


def column(x):
    return 0 if x < 0.38 else 1 if x < 0.62 else 2


def beside(objects, anchor, side):
    """The objects on one side of another; None where the scene does not say."""
    if anchor[2] is None:
        return None
    if side == "left":
        return [o for o in objects if o[2] < anchor[2]]
    return [o for o in objects if o[2] > anchor[2]]


def by_color(objects, color):
    return [o for o in objects if o[1] == color]


def color(o, wording, group, told=""):
    return ask("color", wording, SHAPES[o[0]], COLOR_NAMES[o[1]], group, SHAPES[o[0]], None, told)


def shape(o, wording, group, told=""):
    return ask("shape", wording, COLOR_NAMES[o[1]], SHAPES[o[0]], group, COLOR_NAMES[o[1]], None,
               told)


def side_of(objects, anchor, side, wording, group, told=""):
    """None where not exactly one shape is there."""
    there = beside(objects, anchor, side)
    if not there or len(there) > 1:
        return None
    return ask(side + "_of", wording, SHAPES[anchor[0]], SHAPES[there[0][0]], group,
               SHAPES[anchor[0]], None, told)


def two(objects, color_asked, anchor, side, wording, group, told=""):
    """"the red shape left of the star"; None where not exactly one is meant."""
    there = beside(objects, anchor, side)
    there = there and by_color(there, color_asked)
    if not there or len(there) > 1:
        return None
    return ask(f"color_{side}_of", wording, COLOR_NAMES[color_asked], SHAPES[there[0][0]], group,
               SHAPES[anchor[0]], None, told, SHAPES[anchor[0]])


def count(objects, flags, what, wording, group, told=""):
    """`what`: "shapes", "flags" or the index of a colour."""
    if isinstance(what, str):
        n, phrase = (len(objects) if what == "shapes" else flags), what
    else:
        n, phrase = len(by_color(objects, what)), f"[{COLOR_NAMES[what]}] shapes"
    return ask("count", wording, phrase, NUMBERS[n], group, str(phrase).strip("[]"), None, told)


def exists(objects, shape_asked, color_asked, wording, group, told=""):
    """Asks for a shape, a colour, or both (the other None)."""
    there = any((shape_asked is None or o[0] == shape_asked)
                and (color_asked is None or o[1] == color_asked) for o in objects)
    name = "shape" if shape_asked is None else SHAPES[shape_asked]
    if color_asked is None:
        phrase = f"a [{name}]"
    else:
        phrase = article(COLOR_NAMES[color_asked])
        cut = phrase.index(" ") + 1
        phrase = f"{phrase[:cut]}[{phrase[cut:]}] {name}"
    entity = name if color_asked is None else COLOR_NAMES[color_asked]
    return ask("exists", wording, phrase, "yes" if there else "no", group, entity, None, told)


def missing_shapes(objects):
    """Shapes that training may ask for though they are missing."""
    there = {o[0] for o in objects}
    return [s for s in range(len(SHAPES)) if s not in there and s not in PRIOR]


def missing_colors(objects):
    there = {o[1] for o in objects}
    return [c for c in range(len(COLOR_NAMES)) if c not in there]


def draw_side(rng, objects, wording, group, told):
    ways = [(o, side) for o in objects if o[2] is not None for side in ("left", "right")
            if len(beside(objects, o, side)) == 1]
    return side_of(objects, *pick(rng, ways), wording, group, told) if ways else None


def draw_two(rng, objects, wording, group, told):
    """Mostly where the colour has to choose: among several shapes on that side, or
    where it comes twice."""
    ways, needed = [], []
    for anchor in objects:
        for side in ("left", "right") if anchor[2] is not None else ():
            there = beside(objects, anchor, side)
            for o in there:
                if len(by_color(there, o[1])) == 1:
                    ways.append((o[1], anchor, side))
                    if len(there) > 1 or len(by_color(objects, o[1])) > 1:
                        needed.append(ways[-1])
    if not ways:
        return None
    way = pick(rng, needed if needed and rng.random() < 0.8 else ways)
    return two(objects, *way, wording, group, told)


def draw_exists(rng, objects, wording, group, told):
    yes = rng.random() < 0.5
    kind = rng.random()
    if kind < 0.45:
        if yes:
            return exists(objects, pick(rng, objects)[0], None, wording, group, told)
        return exists(objects, pick(rng, missing_shapes(objects)), None, wording, group, told)
    if kind < 0.6:
        o = pick(rng, objects)[1] if yes else pick(rng, missing_colors(objects))
        return exists(objects, None, o, wording, group, told)
    o = pick(rng, objects)
    if yes:
        return exists(objects, o[0], o[1], wording, group, told)
    other = pick(rng, objects)[1]
    if other == o[1]:
        other = pick(rng, missing_colors(objects))
    return None if o[0] in PRIOR else exists(objects, o[0], other, wording, group, told)


def draw_count(rng, objects, flags, group, told=""):
    what = pick(rng, ("shapes", "flags", None, None) if objects else ("shapes", "flags"))
    if what is None:
        what = pick(rng, objects)[1]
    return count(objects, flags, what, draw_wording(rng), group, told)


def draw(rng, objects, flags, prefix="", told=""):
    """A training question about a scene with shapes; `prefix` is "" or "text_"."""
    wording, group = draw_wording(rng), prefix + "scene"
    while True:
        kind, out = KINDS.draw(rng), None
        if kind == "color":
            return color(pick(rng, objects), wording, group, told)
        if kind == "shape":
            o = pick(rng, objects)
            out = shape(o, wording, group, told) if len(by_color(objects, o[1])) == 1 else None
        elif kind == "side":
            out = draw_side(rng, objects, wording, group, told)
        elif kind == "two":
            out = draw_two(rng, objects, wording, prefix + "two_scene", told)
        elif kind == "count":
            out = draw_count(rng, objects, flags, group, told)
        else:
            out = draw_exists(rng, objects, wording, group, told)
        if out:
            return out


def draw_absent(rng, objects, prefix="", told=""):
    """A training question for something that is not there: "none"."""
    wording, group = draw_wording(rng), prefix + "absent"
    kind = ABSENT.draw(rng)
    if kind == "side" and objects and objects[0][2] is not None:
        side = pick(rng, ("left", "right"))
        free = [o for o in objects if not beside(objects, o, side)]
        if free and rng.random() < 0.5:
            anchor, used = pick(rng, free)[0], None
            return ask(side + "_of", wording, SHAPES[anchor], NONE, group, SHAPES[anchor], None,
                       told)
        if len(objects) > 1:   # a colour that does not stand there
            anchor = pick(rng, objects)
            used = {o[1] for o in beside(objects, anchor, side)}
            wrong = [o[1] for o in objects if o[1] not in used]
            if wrong:
                return ask(f"color_{side}_of", wording, COLOR_NAMES[pick(rng, wrong)], NONE, group,
                           SHAPES[anchor[0]], None, told, SHAPES[anchor[0]])
    if kind == "shape":
        c = COLOR_NAMES[pick(rng, missing_colors(objects))]
        return ask("shape", wording, c, NONE, group, c, None, told)
    s = SHAPES[pick(rng, missing_shapes(objects))]
    return ask("color", wording, s, NONE, group, s, None, told)
