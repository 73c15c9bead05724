"""Words that can stand in a bracket's place, token for token, and change the answer."""
import oracle
from render import COLOR_NAMES, PRIOR, SHAPES
from wordings import FACTS, NONE, VISUAL, allowed


class Slots:
    def __init__(self, tok):
        self.tok = tok
        self.known = {}

    def encode(self, text):
        if text not in self.known:
            if len(self.known) > 200000:
                self.known.clear()
            e = self.tok.encode(text)
            self.known[text] = (e.ids, e.offsets)
        return self.known[text]

    def length(self, name):
        return len(self.encode("of " + name)[0])

    def swap(self, question, k, new, pictured):
        """True where `new` fills the k-th bracket's tokens and changes every one of them."""
        other = oracle.with_words(question, k, new)
        head = "USER: <image>\n" if pictured else "USER: "
        a, offsets = self.encode(head + question.text + " ASSISTANT:")
        b, _ = self.encode(head + other.text + " ASSISTANT:")
        if len(a) != len(b):
            return False
        lo = len(head + question.before)
        if k == 1:
            lo += len(question.constraint) + question.second[0]
        hi = lo + len(oracle.words(question)[k])
        inside = [s < hi and e > lo and e > s for s, e in offsets]
        return all((x != y) == i for x, y, i in zip(a, b, inside))

    def first(self, answer):
        return self.tok.encode(" " + answer, add_special_tokens=False).ids[0]


class Finder:
    """Substitutes for a bracket: what training taught in full (group A, shapes, colours)."""

    def __init__(self, world, slots):
        self.world, self.slots = world, slots
        self.pairs = {}
        for name, pairs in (("text", world.pairs), ("picture", world.picture_pairs)):
            self.pairs[name] = {(p.entity, p.relation, p.value) for p in pairs}

    def candidates(self, question, k, seen, pictured):
        world, relation = self.world, question.relation
        word = oracle.words(question)[k]
        pairs = self.pairs["picture" if pictured else "text"]
        if relation == "caption":
            return []
        if relation == "reverse":
            return [e.told("capital") for e in world.of("A") if e.told("capital")]
        if relation.startswith("neighbor_"):
            if k == 1:
                e = oracle.country(world, seen, question.constraint)
                return [v for i, r, v in sorted(pairs) if i == e.index and "neighbor_" + r == relation]
            value = oracle.words(question)[1]
            return [world.entities[i].name for i, r, v in sorted(pairs)
                    if v == value and "neighbor_" + r == relation]
        if word in oracle.SIDES and relation in ("name", *FACTS) and seen.flags:
            return [s for s in oracle.SIDES if s != word]
        if word in world.by_name or word in VISUAL:
            form = "named_over" if pictured else "text_named"
            shown = {i for i, _ in seen.flags}
            return [e.name for e in world.of("A") if e.index not in shown
                    and allowed(e, relation, form)]
        if word in ("shapes", "flags"):
            return ["shapes", "flags"]
        names = SHAPES if word in SHAPES else COLOR_NAMES if word in COLOR_NAMES else []
        there = {o[0] for o in seen.shapes}   # never asked for: a missing shape with a prior
        return [n for n in names if names is COLOR_NAMES or SHAPES.index(n) in there
                or SHAPES.index(n) not in PRIOR]

    def find(self, rng, question, k, seen, pictured, most=2):
        """At most so many [{words, answer}]; answers other than "none" come first."""
        found, spare = [], []
        first = self.slots.first(question.answer)
        word = oracle.words(question)[k]
        names = self.candidates(question, k, seen, pictured)
        for i in rng.permutation(len(names)):
            if names[i] == word or not self.slots.swap(question, k, names[i], pictured):
                continue
            answer = oracle.right(self.world, oracle.with_words(question, k, names[i]), seen)
            if answer is None or self.slots.first(answer) == first:
                continue
            if question.relation.startswith("neighbor_") and k == 0 and answer == names[i]:
                continue
            (spare if answer == NONE else found).append({"words": names[i], "answer": answer})
            if len(found) == most:
                break
        return (found + spare)[:most]

    def constraints(self, rng, question, seen, pictured, most=2):
        return [{"words": w, "substitutes": self.find(rng, question, k, seen, pictured, most)}
                for k, w in enumerate(oracle.words(question))]
