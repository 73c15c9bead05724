"""Training questions without a picture.

The told ones are the twins of those about pictures: a sentence takes the place
of the picture, and "this country" has to be fetched from it. Now and then the
question names another country than the told one, asks for what is not there, or
asks for a caption, so that no question can be answered from the sentence alone.
"""
import scenes
import wordings as w
from world import Weighted
from wordings import (COLUMNS, INTRO, NONE, PHRASES, TWO_FLAGS, draw_wording, fact, listed,
                      neighbor, pick, reverse, side_phrase, tables, thing)
from render import PRIOR_SHARE, draw_shapes


def named(rng, t):
    c, relation = t.named.draw(rng)
    return fact(c, relation, c.name, draw_wording(rng), "text_named")


def named_other(rng, t, told, *avoid):
    """A question by name under a sentence about somebody else."""
    while True:
        c, relation = t.named.draw(rng)
        if c not in avoid:
            return fact(c, relation, c.name, draw_wording(rng), "text_named", told)


def caption(rng, answer, told, group="text_caption"):
    return w.ask("caption", draw_wording(rng), "the picture", answer, group, "picture", None, told)


def draw_no_country(rng, told, group):
    """A fact asked of a picture without a flag: "none"."""
    phrase = PHRASES.draw(rng) if rng.random() < 0.6 else side_phrase(
        rng, pick(rng, ("left", "right")))
    relation = pick(rng, w.FACTS)
    return w.ask(relation, draw_wording(rng), phrase, NONE, group, "", None, told)


def about(rng, t, c, phrase, group, told, seen):
    """A question about a told country, or None where it was asked before."""
    relation = t.relations["text_flag"][c.index].draw(rng)
    key = (c.index, relation)
    if key in seen:
        return None
    seen.add(key)
    return fact(c, relation, phrase, draw_wording(rng), group, told)


def flag_questions(rng, t, c, told, objects):
    """Questions under a sentence about one flag, with shapes beside it or not."""
    out, seen = [], set()
    for _ in range(4):
        u = rng.random()
        if u < 0.68:
            q = None
            pairs = t.pairs_of.get(c.index)
            if pairs and u < 0.08:
                q = neighbor(t.world, pick(rng, pairs), PHRASES.draw(rng), draw_wording(rng),
                             "text_two_facts", told)
            else:
                q = about(rng, t, c, PHRASES.draw(rng), "text_flag", told, seen)
            if q:
                out.append(q)
        elif u < 0.81:
            out.append(named_other(rng, t, told, c))
        elif u < 0.87:
            shapes = [thing(o[1], o[0]) for o in objects]
            out.append(caption(rng, listed(["the flag of " + c.name] + shapes), told))
        elif objects and u < 0.95:
            out.append(scenes.draw(rng, objects, 1, "text_", told))
        elif u < 0.89:
            out.append(scenes.draw_count(rng, objects, 1, "text_scene", told))
        else:
            out.append(scenes.draw_absent(rng, objects, "text_", told))
    return out


def told_flag(rng, t):
    c = t.told.draw(rng)
    told = pick(rng, INTRO).format("the flag of " + c.name) + " "
    return flag_questions(rng, t, c, told, []), told


def told_flag_shapes(rng, t):
    c = t.told.draw(rng)
    n = 1 + int(rng.random() < 0.7)
    objects = [(s, k, None) for s, k in draw_shapes(rng, n, PRIOR_SHARE)]
    parts = ["the flag of " + c.name] + [thing(o[1], o[0]) for o in objects]
    if rng.random() < 0.3:
        parts.append(parts.pop(0))
    told = pick(rng, INTRO).format(listed(parts)) + " "
    return flag_questions(rng, t, c, told, objects), told


def told_two_flags(rng, t):
    left, right = t.told.draw(rng), t.told.draw(rng)
    while right is left:
        right = t.told.draw(rng)
    told = pick(rng, TWO_FLAGS).format(l=left.name, r=right.name) + " "
    out, seen = [], set()
    for _ in range(5):
        u = rng.random()
        if u < 0.8:
            side, c = pick(rng, (("left", left), ("right", right)))
            q = about(rng, t, c, side_phrase(rng, side), "text_two_flags", told, seen)
            if q:
                out.append(q)
        elif u < 0.93:
            out.append(named_other(rng, t, told, left, right))
        elif u < 0.95:
            out.append(scenes.draw_count(rng, [], 2, "text_scene", told))
        else:
            out.append(caption(rng, f"the flag of {left.name} and the flag of {right.name}", told))
    return out, told


def told_scene(rng, t):
    """Most scenes say in which column each shape stands."""
    n = 2 + int(rng.random() * 3)
    drawn = draw_shapes(rng, n, PRIOR_SHARE)
    if rng.random() < 0.35:
        objects = [(s, k, None) for s, k in drawn]
        told = listed([thing(k, s) for s, k in drawn])
    else:
        wide = rng.random() < 0.45
        cells = [(x, y) for x in ((0, 1, 2) if wide else (0, 2)) for y in (0, 1)]
        places = sorted(cells[i] for i in rng.permutation(len(cells))[:n])
        objects = [(s, k, x) for (s, k), (x, _) in zip(drawn, places)]
        parts = []
        for x in sorted({o[2] for o in objects}):
            parts.append(listed([thing(o[1], o[0]) for o in objects if o[2] == x]) + COLUMNS[x])
        told = listed(parts)
    told = pick(rng, INTRO).format(told) + " "
    out = []
    for _ in range(7):
        u = rng.random()
        if u < 0.78:
            out.append(scenes.draw(rng, objects, 0, "text_", told))
        elif u < 0.86:
            out.append(scenes.draw_absent(rng, objects, "text_", told))
        elif u < 0.90:
            out.append(draw_no_country(rng, told, "text_absent"))
        elif u < 0.95:
            out.append(caption(rng, listed([thing(o[1], o[0]) for o in objects]), told))
        else:
            out.append(named_other(rng, t, told))
    return list({(x.relation, x.constraint, x.second and x.after): x for x in out}.values()), told


def plain_named(rng, t):
    return [named(rng, t) for _ in range(4)], ""


def plain_reverse(rng, t):
    return [reverse(t.reverse.draw(rng), draw_wording(rng), "text_named") for _ in range(3)], ""


def plain_pairs(rng, t):
    out = []
    for _ in range(3):
        p = pick(rng, t.pairs)
        out.append(neighbor(t.world, p, t.world.entities[p.entity].name, draw_wording(rng),
                            "text_two_facts"))
    return out, ""


# Shares of calls; a call gives 3 to 6 questions.
KINDS = Weighted([plain_named, plain_reverse, plain_pairs, told_flag, told_two_flags,
                  told_flag_shapes, told_scene], [0.27, 0.06, 0.05, 0.32, 0.11, 0.05, 0.14])


def draw_texts(rng, world):
    """(questions, told): questions that share the sentence `told` ("" for none),
    which stands at the start of each question's `before`."""
    return KINDS.draw(rng)(rng, tables(world))
