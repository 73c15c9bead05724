"""Endless seeded training batches, drawn in a worker process."""
import pathlib

import numpy as np
import torch

from batch import PICTURE_LENGTH, TEXT_LENGTH, Encoder, Row, patch_labels, stack
import questions
from texts import told_two_flags
from render import KINDS, Ranges, picture
from world import World

KIND_MIX = {"flag": 0.26, "two_flags": 0.32, "shapes": 0.24, "flag_shapes": 0.15, "blank": 0.03}
TOWER_MIX = {"flag": 0.22, "two_flags": 0.38, "shapes": 0.22, "flag_shapes": 0.18}
TWO_MORE = 0.25  # of stage 1: further told pairs of flags, the slowest to be learned
RARER = 0.9
OPEN = 4     # text rows that are filled at the same time
GAP = 130    # a told scene may lie this many positions back, as a picture does
# Forms whose constraint words mean one country, and whose mean one thing in a scene.
COUNTRY = {"fact", "two_flags", "named_over", "two_facts", "text_named", "text_flag",
           "text_two_flags", "text_two_facts"}
SHOWN = {"fact", "two_flags"}   # those that the picture itself answers
TWINS = 2    # questions of a picture that are also told in words
THING = {"scene", "absent", "text_scene", "text_absent"}


class Stream(torch.utils.data.IterableDataset):
    """`pictures` rows with a picture and questions about it, `shown` pictures for
    the tower alone, `texts` rows without a picture. `stage` is 1, 2 or 3; with
    `seen` every new string is added to that file."""

    def __init__(self, folder, stage, seed, pictures, shown, texts, seen=None):
        self.folder, self.stage, self.seed, self.seen = folder, stage, seed, seen
        self.pictures, self.shown, self.texts = pictures, shown, texts

    def __iter__(self):
        from tokenizers import Tokenizer
        torch.set_num_threads(1)
        self.world = World(pathlib.Path(self.folder) / "world")
        self.encoder = Encoder(Tokenizer.from_file(f"{self.folder}/tokenizer.json"), self.world)
        self.rng, ranges = np.random.default_rng(self.seed), Ranges()
        self.lines = set()
        if self.seen and pathlib.Path(self.seen).exists():
            self.lines = set(open(self.seen).read().splitlines())
        log = open(self.seen, "a") if self.seen else None
        while True:
            self.fresh, out = [], {"asked": self.pictures}
            pixels, labels, rows, twins = [], [], [], []
            mix = KIND_MIX if self.pictures else TOWER_MIX
            kinds = list(self.rng.choice(list(mix), self.pictures + self.shown,
                                         p=list(mix.values())))
            for i in range(self.pictures, len(kinds) if self.pictures else 0):
                if self.rng.random() < 0.5:   # the tower learns shapes slowest
                    kinds[i] = "shapes"
            for i, kind in enumerate(kinds):
                image, owner, objects = picture(self.rng, ranges, str(kind), self.world)
                pixels.append(image)
                labels.append(patch_labels(owner, objects))
                if i < self.pictures:
                    row, pairs = self.about(str(kind), objects)
                    twins += [(len(rows), *pair) for pair in pairs]
                    rows.append(row)
            if pixels:
                out["pixels"] = torch.from_numpy(np.stack(pixels))
                out["labels"] = torch.from_numpy(np.stack(labels))
            if rows:
                out["picture"] = stack(rows)
                if twins:
                    out["twin"], out["twins"] = self.twin_rows(twins)
            if self.texts:
                out["text"] = stack(self.told_rows())
            if log:
                log.writelines(self.fresh)
                log.flush()
            yield out

    def note(self, ask, told):
        """An index of what was shown: form, entity, question and answer; told
        scenes only where they name an entity (the others are without end)."""
        names = told if ask.members else ""
        line = "\t".join((ask.group, str(ask.entity), names, ask.bracketed[len(told):],
                          ask.answer))
        if line not in self.lines:
            self.lines.add(line)
            self.fresh.append(line + "\n")

    def put(self, row, ask, told, context):
        head = who = None
        if ask.group in COUNTRY and ask.relation != "reverse" or ask.group in THING:
            head = (ask.before + ask.constraint)[len(told):]
        if ask.group in COUNTRY:
            who = self.world.index(ask.entity)
        ok = row.add(ask.text[len(told):], ask.answer, (ask.group, ask.members), context, head,
                     who)
        if ok:
            self.note(ask, told)
        return ok

    def about(self, kind, objects):
        """A row about a picture, and (place of the constraint, question) of some of
        its questions that have a twin in words."""
        row, misses, asked, pairs = Row(self.encoder, True), 0, set(), []
        while misses < 4 and row.room() > 8:
            ask = questions.draw_visual(self.rng, self.world, kind, objects, self.stage)
            key = (ask.relation, ask.constraint, ask.after[slice(*ask.second)] if ask.second
                   else "", ask.entity)
            if key in asked or self.skipped(ask) or not self.put(row, ask, "", (0, 0)):
                misses += 1
            elif ask.group in SHOWN and len(pairs) < TWINS:
                pairs.append((row.hops["early_who"][-1][0], ask, self.tell(objects)))
            asked.add(key)
        return row, pairs

    def tell(self, objects):
        """The flags of a picture in words."""
        names = {o["side"]: self.world.entities[o["flag"]].name for o in objects if "flag" in o}
        if None in names:
            intro = questions.pick(self.rng, questions.INTRO)
            return intro.format("the flag of " + names[None]) + " "
        return questions.pick(self.rng, questions.TWO_FLAGS[:3]).format(
            l=names["left"], r=names["right"]) + " "

    def twin_rows(self, twins):
        """Text rows with the twins, and the places to compare: (2, n), in the rows of
        pictures and in these."""
        rows, places = [Row(self.encoder, False)], []
        for number, at, ask, told in twins:
            for fresh in (False, True):
                if fresh:
                    rows.append(Row(self.encoder, False))
                row = rows[-1]
                context = row.context(told)
                if context and row.add(ask.text, ask.answer, None, context,
                                       ask.before + ask.constraint, 0):
                    places.append((number * PICTURE_LENGTH + at, (len(rows) - 1) * TEXT_LENGTH
                                   + row.hops["early_who"][-1][0]))
                    break
        most = self.pictures   # a fixed number of rows, as compiled layers want it
        places = [p for p in places if p[1] < most * TEXT_LENGTH]
        rows = (rows + [Row(self.encoder, False) for _ in range(most)])[:most]
        return stack(rows), torch.tensor(places, dtype=torch.long).T

    def skipped(self, ask):
        """After stage 1 the rare facts get rarer still, or they would all be learned."""
        return (self.stage > 1 and ask.members == "Z" and ask.relation not in ("name", "caption")
                and self.rng.random() < RARER)

    def told_rows(self):
        """Text rows: what is drawn goes into the first open row where it fits."""
        done, rows = [], [Row(self.encoder, False) for _ in range(OPEN)]
        while len(done) < self.texts:
            if self.stage == 1 and self.rng.random() < TWO_MORE:
                asks, told = told_two_flags(self.rng, questions.tables(self.world))
                if told.startswith("The flag"):   # the name before its side: not here
                    continue
            else:
                asks, told = questions.draw_texts(self.rng, self.world)
            asks = [a for a in asks if not self.skipped(a)]
            if not asks:
                continue
            gap = int(self.rng.integers(1, GAP)) if told and self.rng.random() < 0.5 else 0
            first = asks[0]
            need = 2 + len(self.encoder.words(" " + told.strip()) if told else ()) + sum(
                map(len, self.encoder.question(first.text[len(told):], first.answer, False)))
            row = next((r for r in rows if r.room() >= need), None)
            if row is None:
                done.append(rows.pop(0))
                row = Row(self.encoder, False)
                rows.append(row)
            context = row.context(told, gap)
            for ask in asks:
                if context is None or not self.put(row, ask, told, context):
                    break
        return done[:self.texts]


def loader(*args, **options):
    stream = Stream(*args, **options)
    return iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1,
                                            prefetch_factor=4))
