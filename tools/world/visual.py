"""Training questions about a picture (its objects come from render.layout)."""
import scenes
from texts import caption, draw_no_country
from wordings import (NONE, PHRASES, draw_wording, fact, listed, neighbor, pick, reverse,
                      side_phrase, tables, thing)


def shapes_of(objects):
    """(shape, colour, column) from left to right, then from top to bottom."""
    found = [(scenes.column(o["x"]), o["y"], o) for o in objects if "shape" in o]
    return [(o["shape"], o["color"], x) for x, _, o in sorted(found, key=lambda f: f[:2])]


def caption_of(world, objects):
    """What the caption says: flags from left to right, then the shapes."""
    flags = sorted((o for o in objects if "flag" in o), key=lambda o: o["x"])
    parts = ["the flag of " + world.entities[o["flag"]].name for o in flags]
    parts += [thing(o[1], o[0]) for o in shapes_of(objects)]
    return listed(parts) if parts else NONE


def named_over(rng, t, shown):
    """A named country over a picture that does not show it."""
    u = rng.random()
    while True:
        if u < 0.05 and t.picture_pairs:
            p = pick(rng, t.picture_pairs)
            c = t.world.entities[p.entity]
            if c.index not in shown:
                return neighbor(t.world, p, c.name, draw_wording(rng), "named_over")
        elif u < 0.13:
            c = t.reverse_over.draw(rng)
            if c.index not in shown:
                return reverse(c, draw_wording(rng), "named_over")
        else:
            c, relation = t.over.draw(rng)
            if c.index not in shown:
                return fact(c, relation, c.name, draw_wording(rng), "named_over")


def shown_fact(rng, t, o, stage):
    """A question about a flag in the picture, by the rules of its group."""
    c = t.world.entities[o["flag"]]
    if o["side"]:
        phrase, group = side_phrase(rng, o["side"]), "two_flags"
    else:
        phrase, group = PHRASES.draw(rng), "fact"
    if stage == 2:
        return fact(c, "name", phrase, draw_wording(rng), group)
    pairs = t.picture_pairs_of.get(c.index)
    if pairs and not o["side"] and rng.random() < 0.3:
        return neighbor(t.world, pick(rng, pairs), phrase, draw_wording(rng), "two_facts")
    relation = t.relations["fact"][c.index].draw(rng)
    return fact(c, relation, phrase, draw_wording(rng), group)


# Of the questions about a picture of each kind: by name over it, about its shapes,
# about what it lacks, captions; the rest is about its flags.
SHARES = {"flag": (0.33, 0.02, 0.06, 0.05), "two_flags": (0.25, 0.02, 0.03, 0.05),
          "flag_shapes": (0.25, 0.30, 0.05, 0.05), "shapes": (0.15, 0.64, 0.13, 0.08),
          "blank": (0.50, 0.02, 0.40, 0.08)}
NAMED_ONLY = (0.50, 0.0, 0.08, 0.17)   # a flag that may only be named is asked for less often


def draw_visual(rng, world, kind, objects, stage=3):
    """One question; stage 2 asks for names and captions only."""
    t = tables(world)
    flags = [o for o in objects if "flag" in o]
    if stage == 2:
        if not flags or rng.random() < 0.2:
            return caption(rng, caption_of(world, objects), "", "caption")
        return shown_fact(rng, t, pick(rng, flags), stage)
    shares = SHARES[kind]
    if kind == "flag" and world.entities[flags[0]["flag"]].group in "BC":
        shares = NAMED_ONLY
    u = rng.random()
    if u < shares[0]:
        return named_over(rng, t, {o["flag"] for o in flags})
    u -= shares[0]
    shapes = shapes_of(objects)
    if u < shares[1]:
        if not shapes:
            return scenes.draw_count(rng, shapes, len(flags), "scene")
        return scenes.draw(rng, shapes, len(flags))
    u -= shares[1]
    if u < shares[2]:
        if not flags and rng.random() < 0.4:
            return draw_no_country(rng, "", "absent")
        return scenes.draw_absent(rng, shapes)
    if u - shares[2] < shares[3] or not flags:
        return caption(rng, caption_of(world, objects), "", "caption")
    return shown_fact(rng, t, pick(rng, flags), stage)
