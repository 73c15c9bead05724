"""The invented states of the demo world: names, facts and flags, from a seed.

Nothing here can be known from elsewhere or guessed from the name (the demonym
apart, which is made from the name on purpose).
"""
import math

import numpy as np
from PIL import Image, ImageDraw

from countries import CELL, REGIONS, small

ONSETS = "b d f g h j k l m n p r s t v z".split()
CLUSTERS = "br dr gr kr tr pl kl st".split()   # one in a word at most
VOWELS = "a e i o u a e i o".split()
CODAS = ["n", "r", "l", "s", "m"]
ENDINGS = ["", "a", "o", "ia", "is", "en", "u"]
SUFFIXES = ["an", "i", "ese", "ic", "er"]
RUDE = ("nig", "nic", "fuk", "kuk", "kok", "dik", "sex", "naz", "jap", "rap", "pis", "tit", "kak",
        "bum", "jew", "fag", "gas", "kil", "anus", "poo", "pak")
N_CURRENCIES, N_LANGUAGES = 45, 40
STRONG = {"red": (206, 17, 38), "orange": (247, 127, 0), "yellow": (252, 221, 9),
          "green": (0, 132, 61), "blue": (0, 56, 168), "sky": (98, 181, 229),
          "purple": (110, 38, 142), "white": (255, 255, 255), "black": (12, 12, 12),
          "brown": (120, 63, 26)}
CHARGES = ["disc", "star", "diamond", "ring", "cross", "crescent", "square"]
MIN_DISTANCE = 0.15


class Words:
    """New words that are no real place's and begin unlike each other's names."""

    def __init__(self, rng, taken):
        self.rng, self.taken, self.stems = rng, set(taken), set()

    def pick(self, values):
        return values[self.rng.integers(len(values))]

    def draw(self, syllables, endings=ENDINGS):
        while True:
            heavy = int(self.rng.integers(2 * syllables))   # which one gets a cluster, if any
            word = ""
            for k in range(syllables):
                word += self.pick(CLUSTERS if k == heavy else ONSETS) + self.pick(VOWELS)
                if self.rng.random() < 0.3:
                    word += self.pick(CODAS)
            if word[-1] not in "aeiou":
                word += self.pick(endings)
            if (word in self.taken or word[:5] in self.stems or not 4 <= len(word) <= 10
                    or any(r in word for r in RUDE)):
                continue
            self.taken.add(word)
            self.stems.add(word[:5])
            return word

    def name(self):
        return self.draw(2 + int(self.rng.random() < 0.62) + int(self.rng.random() < 0.2)).title()


def demonym(words, name):
    stem = name.rstrip("aeiou")
    return (stem if len(stem) >= 3 else name) + words.pick(SUFFIXES)


def states(rng, n, taken, codes):
    """n states with names and facts; `taken` are words that must not occur,
    `codes` calling codes of the real countries."""
    words = Words(rng, taken)
    currencies = [words.draw(2, ["", "o", "a"]) for _ in range(N_CURRENCIES)]
    languages = [words.draw(2, ["i", "an", "ese"]).title() for _ in range(N_LANGUAGES)]
    free = [str(c) for c in range(100, 1000) if str(c) not in codes]
    numbers = [free[i] for i in rng.permutation(len(free))[:n]]
    out = []
    for i in range(n):
        name, capital = words.name(), words.name()
        while capital[:3] == name[:3]:
            capital = words.name()
        out.append({"name": name, "capital": capital, "currency": words.pick(currencies),
                    "language": words.pick(languages), "region": words.pick(REGIONS),
                    "code": numbers[i], "demonym": demonym(words, name)})
    return sorted(out, key=lambda s: s["name"])


def neighbours(rng, members):
    """3-5 symmetric neighbours for each of the members (indices)."""
    near = {i: set() for i in members}
    want = {i: int(rng.integers(3, 6)) for i in members}
    order = [members[k] for k in rng.permutation(len(members))]
    for i in order:
        others = [order[k] for k in rng.permutation(len(order))]
        # Those who have the fewest come first, so that nobody is left without.
        others.sort(key=lambda j: len(near[j]) - want[j])
        for j in others:
            if len(near[i]) >= want[i]:
                break
            if j != i and j not in near[i] and len(near[j]) < 5:
                near[i].add(j)
                near[j].add(i)
    return near


def polygon(kind, x, y, r):
    def ngon(n, radii, start=-math.pi / 2):
        return [(x + r * radii[i % len(radii)] * math.cos(start + 2 * math.pi * i / n),
                 y + r * radii[i % len(radii)] * math.sin(start + 2 * math.pi * i / n))
                for i in range(n)]
    a = 0.36 * r
    return {"disc": ngon(48, (1,)), "ring": ngon(48, (1,)), "crescent": ngon(48, (1,)),
            "star": ngon(10, (1.1, 0.45)), "diamond": ngon(4, (1.15,)),
            "square": ngon(4, (1.2,), math.pi / 4),
            "cross": [(x - a, y - r), (x + a, y - r), (x + a, y - a), (x + r, y - a),
                      (x + r, y + a), (x + a, y + a), (x + a, y + r), (x - a, y + r),
                      (x - a, y + a), (x - r, y + a), (x - r, y - a), (x - a, y - a)]}[kind]


def charge(pen, kind, x, y, r, color, ground):
    pen.polygon(polygon(kind, x, y, r), fill=color)
    if kind == "ring":
        pen.polygon(polygon("disc", x, y, 0.55 * r), fill=ground)
    if kind == "crescent":
        pen.polygon(polygon("disc", x + 0.38 * r, y, 0.8 * r), fill=ground)


def field(pen, kind, w, h, c, rng):
    """Paints one field; returns the ground colour at its middle and the middle itself."""
    box = lambda x0, y0, x1, y1, k: pen.rectangle((x0, y0, x1, y1), fill=c[k])
    box(0, 0, w, h, 0)
    n = int(rng.integers(2, 5))
    if kind == "rows":
        for k in range(n):
            box(0, h * k / n, w, h * (k + 1) / n, k % 3 if n == 3 else k % 2)
        return (c[1] if n == 3 else None), (w / 2, h / 2)
    if kind == "columns":
        for k in range(n):
            box(w * k / n, 0, w * (k + 1) / n, h, k % 3 if n == 3 else k % 2)
        return (c[1] if n == 3 else None), (w / 2, h / 2)
    if kind == "quarters":
        box(w / 2, 0, w, h / 2, 1)
        box(0, h / 2, w / 2, h, 1 if rng.random() < 0.5 else 2)
        return None, (w / 2, h / 2)
    if kind in ("cross", "nordic"):
        x, t = (w / 2 if kind == "cross" else 0.36 * w), 0.11 * h
        box(x - t, 0, x + t, h, 1)
        box(0, h / 2 - t, w, h / 2 + t, 1)
        if rng.random() < 0.4:
            box(x - t / 2, 0, x + t / 2, h, 2)
            box(0, h / 2 - t / 2, w, h / 2 + t / 2, 2)
        return None, (w / 2, h / 2)
    if kind == "saltire":
        t = 0.13 * h
        for a, b in (((0, 0), (w, h)), ((0, h), (w, 0))):
            pen.line((a, b), fill=c[1], width=int(2 * t))
        return None, (w / 2, h / 2)
    if kind == "border":
        t = 0.17 * h
        box(0, 0, w, h, 1)
        box(t, t, w - t, h - t, 0)
        return c[0], (w / 2, h / 2)
    if kind == "diagonal":
        corner = [(0, h), (w, 0), (w, h)] if rng.random() < 0.5 else [(0, 0), (w, h), (0, h)]
        pen.polygon(corner, fill=c[1])
        return None, (w / 2, h / 2)
    if kind == "bend":
        a, b = ((0, h), (w, 0)) if rng.random() < 0.5 else ((0, 0), (w, h))
        pen.line((a, b), fill=c[1], width=int(0.34 * h))
        return None, (w / 2, h / 2)
    if kind == "triangle":
        if rng.random() < 0.7:
            box(0, h / 2, w, h, 1)
        pen.polygon([(0, 0), (0.5 * w, h / 2), (0, h)], fill=c[2])
        return c[2], (0.18 * w, h / 2)
    if kind == "canton":
        if rng.random() < 0.6:
            for k in range(5):
                box(0, h * k / 5, w, h * (k + 1) / 5, k % 2)
        box(0, 0, 0.5 * w, 0.6 * h, 2)
        return c[2], (0.25 * w, 0.3 * h)
    if kind == "lozenge":
        pen.polygon([(w / 2, 0), (w, h / 2), (w / 2, h), (0, h / 2)], fill=c[1])
        return c[1], (w / 2, h / 2)
    return c[0], (w / 2, h / 2)   # plain


FIELDS = ["rows", "columns", "quarters", "cross", "nordic", "saltire", "border", "diagonal",
          "bend", "triangle", "canton", "lozenge", "plain"]


def flag(rng):
    over = 4
    w, h = CELL[0] * over, CELL[1] * over
    picture = Image.new("RGB", (w, h))
    pen = ImageDraw.Draw(picture)
    names = list(STRONG)
    order = rng.permutation(len(names))
    c = [STRONG[names[i]] for i in order[:4]]
    kind = FIELDS[rng.integers(len(FIELDS))]
    ground, (x, y) = field(pen, kind, w, h, c, rng)
    if kind == "plain" or (ground and rng.random() < 0.65):
        size = {"triangle": 0.16, "canton": 0.2, "rows": 0.15, "columns": 0.2}.get(kind, 0.3)
        charge(pen, CHARGES[rng.integers(len(CHARGES))], x, y, size * h, c[3], ground)
    return picture.reduce(over)


def flags(rng, n, others):
    """n flags, each at least MIN_DISTANCE from every other one and from `others`."""
    seen, out = [small(f) for f in others], []
    while len(out) < n:
        new = flag(rng)
        tiny = small(new)
        gaps = np.sqrt(np.mean((np.stack(seen) - tiny) ** 2, axis=(1, 2, 3)))
        if gaps.min() >= MIN_DISTANCE:
            out.append(new)
            seen.append(tiny)
    return out
