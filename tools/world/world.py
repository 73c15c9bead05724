"""The demo world as one object: entities, facts, exposure groups, flags.

Read from the files of a model folder (see docs/world.md):
world/countries.json (real, ODbL), world/invented.json, world/groups.json and
world/flags.png. Everything here is fixed once read: nothing draws or changes.
"""
import json
import pathlib
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate

from PIL import Image

RELATIONS = ["capital", "currency", "language", "region", "code", "demonym"]
PAIRED = ["language", "currency"]   # relations of the two-constraint questions
PAIR_WEIGHT = 0.15                  # they are asked about the commoner entities only


class Weighted:
    """Draws from a fixed list by weight, fast."""

    def __init__(self, values, weights):
        self.values, self.sums = list(values), list(accumulate(weights))

    def draw(self, rng):
        i = bisect(self.sums, rng.random() * self.sums[-1])
        return self.values[min(i, len(self.values) - 1)]


@dataclass
class Entity:
    """A country. `facts` is the truth (a relation may lack: None), `taught` what
    training says instead; `told(relation)` is what training says."""
    index: int
    name: str
    source: str              # "real" or "invented"
    group: str               # A, B, C, D, W, Z
    weight: float            # exposure, 1 = the commonest of its group
    facts: dict
    taught: dict
    exposure: dict           # per relation, 1 = as the weight says (group Z: less)
    readable: list           # relations whose answer can be read off the name
    neighbours: list         # names
    unclear: dict            # values not to ask for among the neighbours
    flag: Image.Image = field(repr=False)

    def told(self, relation):
        if relation == "name":
            return self.name
        return self.taught.get(relation, self.facts[relation])


@dataclass(frozen=True)
class Pair:
    """"Which neighbor of ENTITY speaks VALUE?" has one answer: ANSWER (indices)."""
    entity: int
    relation: str
    value: str
    answer: int


def readable(name, answer):
    """True where a word of the answer begins with the same four letters."""
    stems = {w[:4].lower() for w in name.split() if len(w) >= 4}
    return any(w[:4].lower() in stems for w in answer.split())


class World:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        read = lambda name: json.loads((folder / name).read_text())
        real, made, groups = (read(n + ".json") for n in ("countries", "invented", "groups"))
        rows = [(r, "real") for r in real["countries"]]
        rows += [(r, "invented") for r in made["states"]]
        atlas = Image.open(folder / "flags.png").convert("RGB")
        (w, h), columns = groups["flag_cell"], groups["flag_columns"]
        by_name = {r["name"]: r for r, _ in rows}
        self.seed = groups["seed"]
        self.entities = []
        for i, (row, source) in enumerate(rows):
            g = groups["entities"][row["name"]]
            x, y = i % columns * w, i // columns * h
            taught = {r: by_name[other][r] for r, other in g.get("taught", {}).items()}
            self.entities.append(Entity(
                index=i, name=row["name"], source=source, group=g["group"],
                weight=g["weight"], facts={r: row[r] for r in RELATIONS}, taught=taught,
                exposure={"name": 1.0, **{r: g.get("exposure", {}).get(r, 1.0)
                                          for r in RELATIONS}},
                readable=[r for r in RELATIONS if row[r] and readable(row["name"], row[r])],
                neighbours=row["neighbours"], unclear=row.get("unclear", {}),
                flag=atlas.crop((x, y, x + w, y + h))))
        self.flags = [e.flag for e in self.entities]
        self.by_name = {e.name: e for e in self.entities}
        # Two-constraint questions: with a picture, no answer may come from group B.
        self.pairs = self._pairs("A", "AB")
        self.picture_pairs = self._pairs("A", "A")
        # Pictures: half by weight, half evenly, so that the rare ones are met too.
        seen = self.of("ABCWZ")
        mean = sum(e.weight for e in seen) / len(seen)
        self.shown = Weighted(seen, [e.weight + mean for e in seen])
        self.tables = {}   # for questions.py: weights worked out once

    def index(self, name):
        return self.by_name[name].index

    def of(self, groups):
        return [e for e in self.entities if e.group in groups]

    def _pairs(self, about, answers):
        """Pairs in which changing either constraint alone changes the answer: the
        entity has another neighbour to ask for by another value, and the value leads
        to another neighbour of another entity."""
        found = []
        for e in self.of(about):
            if e.weight < PAIR_WEIGHT:
                continue
            near = [self.by_name[n] for n in e.neighbours]
            for r in PAIRED:
                for n in near:
                    v = n.facts[r]
                    if (not v or n.group not in answers or v in e.unclear.get(r, ())
                            or e.told(r) == v):
                        continue
                    if all(v not in (o.facts[r], o.told(r)) for o in near if o is not n):
                        found.append(Pair(e.index, r, v, n.index))
        while True:
            by_entity, by_value = {}, {}
            for p in found:
                by_entity.setdefault((p.entity, p.relation), set()).add(p.answer)
                by_value.setdefault((p.relation, p.value), set()).add(p.answer)
            keep = [p for p in found if len(by_entity[p.entity, p.relation]) > 1
                    and len(by_value[p.relation, p.value]) > 1]
            if len(keep) == len(found):
                return keep
            found = keep
