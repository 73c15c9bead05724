"""Batches: many questions share one picture, and one row, through the mask.

A row is a prefix (the picture, or just "USER:") and as many questions as fit.
Each question sees the prefix and itself; its positions go on from the prefix,
so that every question is computed exactly as if it stood alone.
"""
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "world"))
import questions as q  # noqa: E402
from render import KINDS, Ranges, SIZE, World, picture  # noqa: E402
from model import PATCH, PATCHES  # noqa: E402

LENGTH = 288
GRID = SIZE // PATCH


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
        self.positions = list(range(len(prefix)))
        self.where, self.target, self.owner, self.tags = [], [], [], []
        self.count = 0

    def add(self, text, answer, tag=None):
        ask, reply = self.encoder.question(text, answer, self.with_picture)
        tokens = ask + reply[:-1]
        if len(self.ids) + len(tokens) > LENGTH:
            return False
        at = len(self.ids) + len(ask) - 1
        self.ids += tokens
        self.segment += [self.count + 1] * len(tokens)
        self.positions += range(self.start, self.start + len(tokens))
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
    where, target, owner, count = [], [], [], 0
    for i, r in enumerate(rows):
        ids[i, :len(r.ids)] = r.ids
        positions[i, :len(r.ids)] = r.positions
        segment[i, :len(r.ids)] = r.segment
        where += [i * LENGTH + w for w in r.where]
        target += r.target
        owner += [count + o for o in r.owner]
        count += r.count
    causal = np.tril(np.ones((LENGTH, LENGTH), bool))
    same = (segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
    mask = (same & causal)[:, None]
    make = torch.from_numpy
    return {"ids": make(ids), "positions": make(positions), "mask": make(mask),
            "where": torch.tensor(where), "target": torch.tensor(target),
            "owner": torch.tensor(owner), "tags": [t for r in rows for t in r.tags]}


def patch_labels(owner, objects):
    """(3, patches): flag, shape, colour of each patch; 0 = none, -100 = unclear."""
    cells = owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(PATCHES, -1)
    out = np.zeros((3, PATCHES), np.int64)
    out[:, (cells > 0).mean(1) > 0.08] = -100
    for i, o in enumerate(objects):
        mine = (cells == i + 1).mean(1) >= 0.4
        if "flag" in o:
            out[0, mine], out[1:, mine] = o["flag"] + 1, 0
        else:
            out[0, mine], out[1, mine], out[2, mine] = 0, o["shape"] + 1, o["color"] + 1
    return out


class Stream(torch.utils.data.IterableDataset):
    """Endless seeded training batches."""

    def __init__(self, world_dir, tok_json, seed, pictures, texts, kinds, named_share,
                 text_only=False):
        self.text_only = text_only   # pictures for the tower, questions in text only
        self.args = (world_dir, tok_json)
        self.seed, self.pictures, self.texts = seed, pictures, texts
        self.kinds, self.named_share = np.array(kinds) / sum(kinds), named_share

    def __iter__(self):
        from tokenizers import Tokenizer
        torch.set_num_threads(1)
        world, encoder = World(self.args[0]), Encoder(Tokenizer.from_file(self.args[1]))
        rng, ranges = np.random.default_rng(self.seed), Ranges()
        while True:
            rows, pixels, labels = [], [], []
            for _ in range(self.pictures):
                kind = KINDS[rng.choice(len(KINDS), p=self.kinds)]
                image, owner, objects = picture(rng, ranges, kind, world)
                pixels.append(image)
                labels.append(patch_labels(owner, objects))
                if self.text_only:
                    continue
                row, ok = Row(encoder, True), True
                while ok:
                    ask = q.draw_visual(rng, world, kind, objects, self.named_share)
                    ok = row.add(ask.text, ask.answer, ask.group)
                rows.append(row)
            for _ in range(self.texts):
                row, ok = Row(encoder, False), True
                while ok:
                    ask = q.draw_text(rng, world)
                    ok = row.add(ask.text, ask.answer, ask.group)
                rows.append(row)
            out = stack(rows)
            out["pixels"] = torch.from_numpy(np.stack(pixels))
            out["labels"] = torch.from_numpy(np.stack(labels))
            yield out
