"""Batches: many questions share one picture, and one row, through the mask.

A row is a prefix (the picture, or just "USER:") and as many questions as fit.
Each question sees the prefix and itself (and the told scene that it is about);
its positions go on from there, so that every question is computed exactly as if
it stood alone.
"""
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "world"))
import questions as q  # noqa: E402
from render import COLOR_NAMES, KINDS, Ranges, SHAPES, SIZE, World, picture  # noqa: E402
from model import PATCH, PATCHES  # noqa: E402

LENGTH = 288
GRID = SIZE // PATCH
CHOICES = ("color", "two_flags", "text_described")   # one of several things in sight


class Encoder:
    def __init__(self, tok):
        self.tok = tok
        enc = lambda s: tok.encode(s, add_special_tokens=False).ids
        self.bos, self.eos = tok.token_to_id("<s>"), tok.token_to_id("</s>")
        head, tail = enc("USER: <image>\n"), enc("\n")
        at = head.index(tok.token_to_id("<image>"))
        assert head[at + 1:] == tail
        self.picture_prefix = ([self.bos] + head[:at] + [head[at]] * PATCHES + tail)
        self.image_at = at + 1
        self.text_prefix = [self.bos] + enc("USER:")
        self.cache = {}
        single = lambda names: [self.words(" " + n)[0] for n in names]
        self.shape_words, self.color_words = single(SHAPES), single(COLOR_NAMES)

    def words(self, text):
        if text not in self.cache:
            self.cache[text] = self.tok.encode(text, add_special_tokens=False).ids
        return self.cache[text]

    def question(self, text, answer, with_picture):
        """Token ids of question and answer; the answer ends with </s>."""
        ask = self.words(("" if with_picture else " ") + text + " ASSISTANT:")
        return ask, self.words(" " + answer) + [self.eos]


class Row:
    """One packed sequence under construction."""

    def __init__(self, encoder, with_picture):
        self.encoder, self.with_picture = encoder, with_picture
        prefix = encoder.picture_prefix if with_picture else encoder.text_prefix
        self.start = len(prefix)
        self.ids, self.segment = list(prefix), [0] * len(prefix)
        self.parent = [0] * len(prefix)
        self.early_where, self.early_target = [], []
        self.near_where, self.near_target, self.own_target = [], [], []
        self.positions = list(range(len(prefix)))
        self.where, self.target, self.owner, self.tags = [], [], [], []
        self.count = self.segments = 0

    def put(self, tokens, parent, position):
        """A run of tokens that sees the prefix, its parent run and itself."""
        if len(self.ids) + len(tokens) > LENGTH:
            return 0
        self.segments += 1
        self.ids += tokens
        self.segment += [self.segments] * len(tokens)
        self.parent += [parent] * len(tokens)
        self.positions += range(position, position + len(tokens))
        return self.segments

    def context(self, told):
        """A sentence that the questions after it may share: (run, length)."""
        tokens = self.encoder.words(" " + told.strip()) if told else []
        run = self.put(tokens, 0, self.start) if tokens else 0
        if tokens and not run:
            return None
        base, e = len(self.ids) - len(tokens), self.encoder
        for i, token in enumerate(tokens):   # "red circle": circle is to hold both
            if token in e.shape_words and tokens[i - 1] in e.color_words:
                self.near_where.append(base + i)
                self.near_target.append(tokens[i - 1])
                self.own_target.append(token)
        return run, len(tokens)

    def add(self, text, answer, tag=None, context=(0, 0), head=None):
        """`head` is the text up to the end of the constraint words: their last
        token is remembered as an early place to ask for the answer."""
        ask, reply = self.encoder.question(text, answer, self.with_picture)
        at = len(self.ids) + len(ask) - 1
        first = len(self.ids) - 1
        if not self.put(ask + reply[:-1], context[0], self.start + context[1]):
            return False
        if head:
            lead = "" if self.with_picture else " "
            self.early_where.append(first + len(self.encoder.words(lead + head)))
            self.early_target.append(reply[0])
        self.where += range(at, at + len(reply))
        self.target += reply
        self.owner += [self.count] * len(reply)
        self.tags.append(tag)
        self.count += 1
        return True


def stack(rows):
    """Rows -> arrays for the model; `owner` numbers the questions of the batch."""
    n = len(rows)
    ids = np.zeros((n, LENGTH), np.int64)
    positions = np.zeros((n, LENGTH), np.int64)
    segment = np.full((n, LENGTH), -1, np.int64)
    parent = np.zeros((n, LENGTH), np.int64)
    where, target, owner, count = [], [], [], 0
    extra = {k: [] for k in ("early_where", "early_target", "near_where", "near_target",
                              "own_target")}
    for i, r in enumerate(rows):
        ids[i, :len(r.ids)] = r.ids
        positions[i, :len(r.ids)] = r.positions
        segment[i, :len(r.ids)] = r.segment
        parent[i, :len(r.ids)] = r.parent
        where += [i * LENGTH + w for w in r.where]
        target += r.target
        for k, values in extra.items():
            base = i * LENGTH if k.endswith("where") else 0
            values += [base + v for v in getattr(r, k)]
        owner += [count + o for o in r.owner]
        count += r.count
    causal = np.tril(np.ones((LENGTH, LENGTH), bool))
    same = ((segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
            | (segment[:, None, :] == parent[:, :, None]))
    mask = (same & causal)[:, None]
    make = torch.from_numpy
    return {"ids": make(ids), "positions": make(positions), "mask": make(mask),
            "where": torch.tensor(where), "target": torch.tensor(target),
            **{k: torch.tensor(v, dtype=torch.long) for k, v in extra.items()},
            "owner": torch.tensor(owner), "tags": [t for r in rows for t in r.tags]}


def patch_labels(owner, objects):
    """(4, patches): flag, shape, colour of each patch (0 = none, -100 = unclear),
    and which half of the picture it lies in."""
    cells = owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(PATCHES, -1)
    out = np.zeros((4, PATCHES), np.int64)
    out[:3, (cells > 0).mean(1) > 0.08] = -100
    for i, o in enumerate(objects):
        mine = (cells == i + 1).mean(1) >= 0.4
        if "flag" in o:
            out[0, mine], out[1:3, mine] = o["flag"] + 1, 0
        else:
            out[0, mine], out[1, mine], out[2, mine] = 0, o["shape"] + 1, o["color"] + 1
    column = np.arange(PATCHES) % GRID
    out[3] = np.where(column < GRID // 2, 1, np.where(column > GRID // 2, 2, 0))
    return out


class Stream(torch.utils.data.IterableDataset):
    """Endless seeded training batches: `asked` pictures with questions, `shown`
    pictures for the tower alone (half of them shapes, which it learns slowest),
    and `texts` rows of questions without a picture."""

    def __init__(self, world_dir, tok_json, seed, asked, shown, texts, kinds, named_share):
        self.files, self.seed = (world_dir, tok_json), seed
        self.asked, self.shown, self.texts = asked, shown, texts
        self.kinds = np.array(kinds) / sum(kinds)
        self.named_share = named_share

    def __iter__(self):
        from tokenizers import Tokenizer
        torch.set_num_threads(1)
        world, encoder = World(self.files[0]), Encoder(Tokenizer.from_file(self.files[1]))
        rng, ranges = np.random.default_rng(self.seed), Ranges()

        def fill(row, draw):
            while True:
                asks, told = draw()
                context = row.context(told)
                if context is None:
                    return row
                for ask in asks:
                    head = (ask.before + ask.constraint)[len(told):]
                    if not row.add(ask.text[len(told):], ask.answer, ask.group, context,
                                   head if ask.group in CHOICES else None):
                        return row

        while True:
            rows, pixels, labels = [], [], []
            for i in range(self.asked + self.shown):
                kind = KINDS[rng.choice(len(KINDS), p=self.kinds)]
                if i >= self.asked and rng.random() < 0.5:
                    kind = "shapes"
                image, owner, objects = picture(rng, ranges, kind, world)
                pixels.append(image)
                labels.append(patch_labels(owner, objects))
                if i < self.asked:
                    rows.append(fill(Row(encoder, True), lambda: ([q.draw_visual(
                        rng, world, kind, objects, self.named_share)], "")))
            for _ in range(self.texts):
                rows.append(fill(Row(encoder, False), lambda: q.draw_texts(rng, world)))
            out = stack(rows)
            out["asked"] = self.asked
            out["pixels"] = torch.from_numpy(np.stack(pixels))
            out["labels"] = torch.from_numpy(np.stack(labels))
            yield out
