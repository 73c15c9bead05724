"""The same fact asked otherwise: by name, under a sentence that tells the picture,
over another picture, over an empty one."""
from dataclasses import replace

import oracle
from oracle import Seen
from render import PRIOR, SHAPES
from wordings import COLUMNS, FACTS, INTRO, NONE, TWO_FLAGS, listed, pick, thing

BLANK = "img/blank.png"


def tell(rng, world, seen, columns):
    """(sentence, what it tells); `columns` says where each shape stands."""
    names = [world.entities[i].name for i, _ in seen.flags]
    if len(names) == 2:
        flags = sorted(seen.flags, key=lambda f: f[1])   # left, right
        left, right = (world.entities[i].name for i, _ in flags)
        return pick(rng, TWO_FLAGS).format(l=left, r=right) + " ", Seen(flags, [], False)
    parts = ["the flag of " + n for n in names]
    shapes = seen.shapes
    if names or not columns:
        shapes = [(s, c, None) for s, c, _ in shapes]
        parts += [thing(c, s) for s, c, _ in shapes]
    else:
        parts = [listed([thing(c, s) for s, c, at in shapes if at == x]) + COLUMNS[x]
                 for x in sorted({o[2] for o in shapes})]
    return pick(rng, INTRO).format(listed(parts)) + " ", Seen(seen.flags, shapes, False)


class Twins:
    def __init__(self, world, finder):
        self.world, self.finder = world, finder

    def record(self, rng, question, seen, image):
        answer = oracle.right(self.world, question, seen)
        if answer is None:
            return None
        question = replace(question, answer=answer)
        return {"image": image, "question": question.bracketed, "answer": answer,
                "constraints": self.finder.constraints(rng, question, seen, image is not None, 1)}

    def of(self, rng, question, seen, over, told=""):
        """`over`: (path, Seen) of a picture that shows something else, or None;
        `told`: the sentence at the question's start that tells what is seen."""
        out = {}
        c = oracle.country(self.world, seen, question.constraint)
        about = None if c in (None, NONE) else c
        visual = about is not None and question.constraint not in self.world.by_name
        if visual and question.relation not in ("name", "caption"):
            phrase, (before, after) = about.name, self.around(question)
            before = before[len(told):]
            named = replace(question, before=before, constraint=phrase, after=after,
                            second=self.shifted(question, after))
            out["named"] = self.record(rng, named, Seen(pictured=False), None)
            if over:
                out["named_over"] = self.record(rng, named, over[1], over[0])
        elif about is not None and seen.pictured and question.relation != "name":
            out["named"] = self.record(rng, question, Seen(pictured=False), None)
        if seen.pictured and (seen.flags or seen.shapes):
            sided = question.relation.endswith("_of")
            if not (sided and seen.flags):
                told, told_seen = tell(rng, self.world, seen, sided or rng.random() < 0.5)
                described = replace(question, before=told + question.before)
                if question.relation == "caption":
                    out["described"] = {"image": None, "question": described.bracketed,
                                        "answer": question.answer}
                else:
                    out["described"] = self.record(rng, described, told_seen, None)
            if self.blank(question, visual):
                out["blank"] = {"image": BLANK, "question": question.bracketed,
                                "answer": question.answer if about and not visual else NONE}
        return {k: v for k, v in out.items() if v}

    def around(self, question):
        """Before and after the country's words: "the country on the [left]" goes whole."""
        before, after = question.before, question.after
        if question.constraint not in oracle.SIDES:
            return before, after
        for head, tail in ((" the country on the ", ""), (" the nation on the ", ""),
                           (" the state on the ", ""), (" the ", " country"), (" the ", " nation")):
            if before.endswith(head) and after.startswith(tail):
                return before[:-len(head)] + " ", after[len(tail):]
        raise ValueError(question.bracketed)

    def shifted(self, question, after):
        if not question.second:
            return None
        cut = len(question.after) - len(after)
        return question.second[0] - cut, question.second[1] - cut

    def blank(self, question, visual):
        """Questions that training asked over an empty picture."""
        if question.relation in FACTS or question.constraint in self.world.by_name:
            return question.relation != "name" and not question.second
        return question.relation == "shape" or (
            question.relation == "color" and SHAPES.index(question.constraint) not in PRIOR)
