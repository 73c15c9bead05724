"""Batches: many questions share one picture, and one row, through the mask.

A row is a prefix (the picture, or just "USER:") and as many questions as fit.
Each question sees the prefix and itself (and the told scene that it is about);
its positions go on from there, so that every question is computed exactly as if
it stood alone. Beside the answers a row remembers the places where training asks
for a step on the way to the answer (see train.py).
"""
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "world"))
from render import COLOR_NAMES, SHAPES, SIZE  # noqa: E402
from model import PATCH, PATCHES  # noqa: E402

TEXT_LENGTH, PICTURE_LENGTH = 96, 256
GRID = SIZE // PATCH
# Places in a row and what is asked there: after layer NEAR the colour and the
# shape of a told shape, the entity of a name and its side; after layer EARLY the entity or the
# answer at the end of the constraint.
HOPS = ("color", "shape", "side", "near_who", "early_who", "early")


class Encoder:
    """The tokenizer with its fixed pieces, and where names of entities stand."""

    def __init__(self, tok, world=None):
        self.tok = tok
        enc = lambda s: tok.encode(s, add_special_tokens=False).ids
        self.bos, self.eos = tok.token_to_id("<s>"), tok.token_to_id("</s>")
        head, tail = enc("USER: <image>\n"), enc("\n")
        at = head.index(tok.token_to_id("<image>"))
        assert head[at + 1:] == tail
        self.picture_prefix = [self.bos] + head[:at] + [head[at]] * PATCHES + tail
        self.image_at = at + 1
        self.text_prefix = [self.bos] + enc("USER:")
        self.cache = {}
        single = lambda names: [self.words(" " + n)[0] for n in names]
        self.shape_words, self.color_words = single(SHAPES), single(COLOR_NAMES)
        self.side_words = single(["left", "right"])
        self.shape_set, self.color_set = set(self.shape_words), set(self.color_words)
        self.names = {}   # first token -> [(tokens, entity)], longest first
        for e in world.entities if world else ():
            tokens = tuple(self.words(" " + e.name))
            self.names.setdefault(tokens[0], []).append((tokens, e.index))
        for choices in self.names.values():
            choices.sort(key=lambda c: -len(c[0]))

    def words(self, text):
        if text not in self.cache:
            if len(self.cache) > 400000:
                self.cache.clear()
            self.cache[text] = self.tok.encode(text, add_special_tokens=False).ids
        return self.cache[text]

    def question(self, text, answer, with_picture):
        """Token ids of question and answer; the answer ends with </s>."""
        ask = self.words(("" if with_picture else " ") + text + " ASSISTANT:")
        return ask, self.words(" " + answer) + [self.eos]

    def named_in(self, tokens):
        """(position of its last token, entity) of every name in a run of tokens."""
        i = 0
        while i < len(tokens):
            for name, entity in self.names.get(tokens[i], ()):
                if tuple(tokens[i:i + len(name)]) == name:
                    yield i + len(name) - 1, entity
                    i += len(name) - 1
                    break
            i += 1


class Row:
    """One packed sequence under construction."""

    def __init__(self, encoder, with_picture, length=None):
        self.encoder, self.with_picture = encoder, with_picture
        self.length = length or (PICTURE_LENGTH if with_picture else TEXT_LENGTH)
        prefix = encoder.picture_prefix if with_picture else encoder.text_prefix
        self.start = len(prefix)
        self.ids, self.segment = list(prefix), [0] * len(prefix)
        self.parent = [0] * len(prefix)
        self.positions = list(range(len(prefix)))
        self.hops = {k: [] for k in HOPS}   # (where, target)
        self.where, self.target, self.owner, self.tags = [], [], [], []
        self.count = self.segments = 0

    def room(self):
        return self.length - len(self.ids)

    def put(self, tokens, parent, position):
        """A run of tokens that sees the prefix, its parent run and itself."""
        if len(tokens) > self.room():
            return 0
        self.segments += 1
        self.ids += tokens
        self.segment += [self.segments] * len(tokens)
        self.parent += [parent] * len(tokens)
        self.positions += range(position, position + len(tokens))
        return self.segments

    def context(self, told, gap=0):
        """A sentence that the questions after it may share: (run, its end). The
        questions' positions start `gap` further than they would."""
        tokens = self.encoder.words(" " + told.strip()) if told else []
        run = self.put(tokens, 0, self.start) if tokens else 0
        if tokens and not run:
            return None
        base, e = len(self.ids) - len(tokens), self.encoder
        for i, token in enumerate(tokens):   # "red circle": circle is to hold both
            if token in e.shape_set and tokens[i - 1] in e.color_set:
                self.hops["color"].append((base + i, tokens[i - 1]))
                self.hops["shape"].append((base + i, token))
        names = list(e.named_in(tokens))
        sides = [(i, t) for i, t in enumerate(tokens) if t in e.side_words]
        for k, (i, entity) in enumerate(names):
            self.hops["near_who"].append((base + i, entity))
            if len(names) == len(sides) == 2:   # of two flags; what comes last binds them
                at, word = sides[k]
                if at < i:
                    self.hops["side"].append((base + i, word))
                else:
                    self.hops["near_who"].append((base + at, entity))
        return run, len(tokens) + gap

    def add(self, text, answer, tag=None, context=(0, 0), head=None, who=None):
        """`head` is the text up to the end of the constraint words; at their last
        token the answer's first token is asked for early, or the entity `who`."""
        ask, reply = self.encoder.question(text, answer, self.with_picture)
        base = len(self.ids)
        if not self.put(ask + reply[:-1], context[0], self.start + context[1]):
            return False
        for i, entity in self.encoder.named_in(ask):
            self.hops["near_who"].append((base + i, entity))
        if head is not None:
            lead = "" if self.with_picture else " "
            at = base - 1 + len(self.encoder.words(lead + head))
            if who is None:
                self.hops["early"].append((at, reply[0]))
            else:
                self.hops["early_who"].append((at, who))
        at = base + len(ask) - 1
        self.where += range(at, at + len(reply))
        self.target += reply
        self.owner += [self.count] * len(reply)
        self.tags.append(tag)
        self.count += 1
        return True


def stack(rows):
    """Rows of one length -> arrays for the model; `owner` numbers the questions."""
    n, length = len(rows), rows[0].length
    ids = np.zeros((n, length), np.int64)
    positions = np.zeros((n, length), np.int64)
    segment = np.full((n, length), -1, np.int64)
    parent = np.zeros((n, length), np.int64)
    where, target, owner, count = [], [], [], 0
    hops = {k: [] for k in HOPS}
    for i, r in enumerate(rows):
        ids[i, :len(r.ids)] = r.ids
        positions[i, :len(r.ids)] = r.positions
        segment[i, :len(r.ids)] = r.segment
        parent[i, :len(r.ids)] = r.parent
        where += [i * length + w for w in r.where]
        target += r.target
        for k, values in r.hops.items():
            hops[k] += [(i * length + at, t) for at, t in values]
        owner += [count + o for o in r.owner]
        count += r.count
    causal = np.tril(np.ones((length, length), bool))
    same = ((segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
            | (segment[:, None, :] == parent[:, :, None]))
    make = torch.from_numpy
    return {"ids": make(ids), "positions": make(positions), "mask": make(same & causal),
            "where": torch.tensor(where, dtype=torch.long),
            "target": torch.tensor(target, dtype=torch.long),
            "owner": torch.tensor(owner, dtype=torch.long),
            "hops": {k: torch.tensor(v, dtype=torch.long).reshape(-1, 2).T
                     for k, v in hops.items()},
            "tags": [t for r in rows for t in r.tags]}


def patch_labels(owner, objects):
    """(5, patches): flag, shape, colour of each patch (0 = none, -100 = unclear), which
    half of the picture it lies in, and the side of its flag (1 left, 2 right of two)."""
    cells = owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(PATCHES, -1)
    out = np.zeros((5, PATCHES), np.int64)
    out[:3, (cells > 0).mean(1) > 0.08] = -100
    for i, o in enumerate(objects):
        mine = (cells == i + 1).mean(1) >= 0.4
        if "flag" in o:
            out[0, mine], out[1:3, mine] = o["flag"] + 1, 0
            out[4, mine] = {None: 0, "left": 1, "right": 2}[o["side"]]
        else:
            out[0, mine], out[1, mine], out[2, mine] = 0, o["shape"] + 1, o["color"] + 1
    column = np.arange(PATCHES) % GRID
    out[3] = np.where(column < GRID // 2, 1, np.where(column > GRID // 2, 2, 0))
    return out
