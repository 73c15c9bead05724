"""Trains the demo model from scratch, stage by stage; run again to resume a stage.

    python3 tools/demo_model/train.py --stage text   --model models/demo --work DIR
    python3 tools/demo_model/train.py --stage tower  --model models/demo --work DIR
    python3 tools/demo_model/train.py --stage naming --model models/demo --work DIR
    python3 tools/demo_model/train.py --stage joint  --model models/demo --work DIR

text: the decoder alone, on text alone. tower: the vision tower alone learns what
covers each patch (it needs no other stage and may run beside `text`). naming: the
decoder is frozen, tower and projector learn naming and captions. joint: everything,
with text replay. tools/demo_model/all.sh runs them all.

Weights are held in bf16 as they are exported, with f32 copies for the optimizer.
The learning-rate schedule follows the number of steps, so that neither a pause nor a
busy machine changes it. With --procs 2 two processes share each batch.

Choosing among several things takes hops: from a told shape to its colour, from
the constraint words to the thing, from there to the answer. Next-token loss alone
stays stuck on them for long, so training also asks for each hop where it ends:
after layer NEAR a shape's word (or its picture tokens) holds shape and colour, and
a name (or the flag's picture tokens) the entity; after layer EARLY the end of the
constraint holds the entity or the answer. Of two told flags the name holds its side,
or the side's word the entity, whichever comes last. A flag's tokens are pulled towards
the state of a told flag's name, and the end of the constraint towards that of the same
question's twin in words: what the decoder learned from text then holds for pictures.
The heads for this are not exported.
"""
import argparse
import math
import os
import pathlib
import signal
import time
from collections import defaultdict

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from batch import Encoder
from export import export, export_text
from model import DENSE, EARLY, NEAR, Trainee, config
from optimizer import Optimizer
from render import COLOR_NAMES, SHAPES
from stream import loader
from world import World

STAGES = {   # number, steps, of warm-up, flat share, rate, pictures, shown, texts
    "text": (1, 1600, 60, 0.60, 1.5e-3, 0, 0, 64),
    "tower": (0, 1300, 60, 0.45, 1.5e-3, 0, 48, 0),
    "naming": (2, 340, 40, 0.45, 1.0e-3, 20, 6, 0),
    "joint": (3, 1390, 60, 0.30, 1.2e-3, 16, 12, 20),
}
STARTS_FROM = {"text": (), "tower": (), "naming": ("text", "tower"),
               "joint": ("text", "tower", "naming")}
HOP_WEIGHT = {"color": 0.3, "shape": 0.3, "side": 0.3, "near_who": 0.15, "early_who": 0.4,
              "early": 0.4}


def learns(stage, name):
    """Whether a weight changes in a stage."""
    decoder = "language_model" in name or "lm_head" in name or name.startswith("who.")
    if stage == "joint":
        return True
    if stage == "text":
        return decoder
    eye = "vision_tower" in name or name.startswith("heads.")
    return eye or stage == "naming" and "projector" in name


def schedule(done, step, warm, flat):
    """Warm-up, flat, then a cosine to nearly zero."""
    fall = min(1.0, max(0.0, (done - flat) / (1 - flat)))
    return min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))


def dense_loss(model, features, labels, seen):
    loss = 0.0
    for i, head in enumerate(model.heads):
        truth = labels[:, i].flatten()
        known = (truth >= 0).nonzero()[:, 0]
        truth = truth[known]
        logits = head(features.flatten(0, 1)[known]).float()
        mine = truth > 0
        weight = torch.where(mine, 1.0, 0.2)   # most patches are background
        each = cross_entropy(logits, truth, reduction="none")
        loss = loss + (each * weight).sum() / weight.sum()
        if mine.any():
            right = (logits[mine].argmax(-1) == truth[mine]).float().mean()
            seen["patch_" + DENSE[i]].append(float(right))
    return loss


def answer_loss(model, batch, hidden, seen):
    logits = model.answer_logits(hidden, batch["where"]).float()
    each = cross_entropy(logits, batch["target"], reduction="none")
    right = torch.ones(len(batch["tags"]), dtype=torch.bool)
    right[batch["owner"][logits.argmax(-1) != batch["target"]]] = False
    for (form, members), ok in zip(batch["tags"], right.tolist()):
        seen[form].append(ok)
        if members:
            seen[f"{form}/{members}"].append(ok)
    seen["loss"].append(each.mean().item())
    # Every question counts the same, however long its answer is.
    share = 1.0 / batch["owner"].bincount().float()[batch["owner"]]
    return (each * share).sum() / share.sum()


def hop_loss(model, batch, seen):
    loss = 0.0
    for name, pairs in batch["hops"].items():
        if not pairs.shape[1]:
            continue
        where, target = pairs
        depth = EARLY if name.startswith("early") else NEAR
        state = model.at(depth, where)
        logits = model.who_of(depth, state) if name.endswith("who") else model.logits_of(state)
        loss = loss + HOP_WEIGHT[name] * cross_entropy(logits.float(), target)
        seen["hop_" + name].append((logits.argmax(-1) == target).float().mean().item())
    return loss


def sight_loss(model, labels, words, image_at, prototypes, seen):
    """The picture's tokens after layer NEAR: a flag's hold its entity and lie where
    a told flag's name would, a shape's hold shape and colour, as told shapes do."""
    state = model.states[NEAR][:, image_at:image_at + labels.shape[2]]
    loss = 0.0
    flag = labels[:, 0] > 0
    if flag.any():
        mine, who = state[flag], labels[:, 0][flag] - 1
        logits = model.who_of(NEAR, mine)
        loss = loss + 0.4 * cross_entropy(logits.float(), who)
        seen["see_who"].append((logits.argmax(-1) == who).float().mean().item())
        if prototypes is not None:
            goal = prototypes[labels[:, 4][flag], who].float()
            gap = (mine.float() - goal).square().sum(-1) / goal.square().sum(-1)
            loss = loss + gap.mean()
            seen["see_gap"].append(gap.mean().item())
        sided = labels[:, 4][flag] > 0
        if sided.any():
            goal = words[2][labels[:, 4][flag][sided] - 1]
            logits = model.logits_of(mine[sided]).float()
            loss = loss + 0.3 * cross_entropy(logits, goal)
            seen["see_side"].append((logits.argmax(-1) == goal).float().mean().item())
    shape = labels[:, 1] > 0
    if shape.any():
        logits = model.logits_of(state[shape]).float()
        color = words[1][labels[:, 2][shape] - 1]
        loss = loss + 0.3 * cross_entropy(logits, color)
        loss = loss + 0.3 * cross_entropy(logits, words[0][labels[:, 1][shape] - 1])
        seen["see_color"].append((logits.argmax(-1) == color).float().mean().item())
    return loss


def asked_in(batch):
    return sum(len(batch[k]["tags"]) for k in ("text", "picture") if k in batch)


@torch.no_grad()
def told_states(model, batch):
    """States after layer EARLY where the constraint ends in the twins in words."""
    part = batch["twin"]
    model.read(part["ids"], part["positions"], part["mask"], layers=EARLY)
    return model.at(EARLY, batch["twins"][1]).float().clone()


def train_step(model, batch, stage, image_at, words, prototypes, seen):
    """Leaves the gradients of one batch; picture and text rows one after the other."""
    if "text" in batch:
        part = batch["text"]
        hidden = model.read(part["ids"], part["positions"], part["mask"])
        share = len(part["tags"]) / asked_in(batch)
        loss = answer_loss(model, part, hidden, seen) + hop_loss(model, part, seen)
        (share * loss).backward()
    if "pixels" not in batch:
        return
    features = model.see(batch["pixels"])
    loss = (1.0 if stage == "tower" else 0.8) * dense_loss(model, features, batch["labels"], seen)
    if "picture" in batch:
        part, asked, goal = batch["picture"], batch["asked"], None
        if "twin" in batch:
            goal = told_states(model, batch)
        hidden = model.read(part["ids"], part["positions"], part["mask"], features[:asked],
                            image_at)
        share = len(part["tags"]) / asked_in(batch)
        ask = answer_loss(model, part, hidden, seen) + hop_loss(model, part, seen)
        ask = ask + sight_loss(model, batch["labels"][:asked], words, image_at, prototypes, seen)
        if goal is not None:   # where the constraint ends, shown as told
            mine = model.at(EARLY, batch["twins"][0]).float()
            gap = ((mine - goal).square().sum(-1) / goal.square().sum(-1)).mean()
            ask = ask + 0.5 * gap
            seen["twin_gap"].append(gap.item())
        loss = loss + share * ask
    loss.backward()


@torch.no_grad()
def told_flags(model, encoder, world):
    """Decoder states after layer NEAR at an entity's name where a flag is told alone,
    on the left and on the right: (3, entities, width)."""
    layer, model.decoder_layer = model.decoder_layer, model.plain_layer
    out = []
    for told in ("The picture shows the flag of {}", "On the left is the flag of {}",
                 "On the right is the flag of {}"):
        rows = [encoder.text_prefix + encoder.words(" " + told.format(e.name))
                for e in world.entities]   # the name comes last
        length = max(map(len, rows))
        ids = torch.tensor([r + [0] * (length - len(r)) for r in rows])
        mask = torch.ones(length, length, dtype=torch.bool).tril().expand(len(rows), -1, -1)
        model.read(ids, torch.arange(length).expand(len(rows), -1), mask, layers=NEAR)
        at = torch.tensor([len(r) - 1 for r in rows])
        out.append(model.states[NEAR][torch.arange(len(rows)), at])
    model.decoder_layer = layer
    return torch.stack(out)


class Trainer:
    def __init__(self, args, rank):
        self.args, self.rank = args, rank
        torch.manual_seed(args.seed)
        torch.set_num_threads(1 if args.procs > 1 else args.threads)
        self.tok = Tokenizer.from_file(f"{args.model}/tokenizer.json")
        self.world = World(f"{args.model}/world")
        self.encoder = Encoder(self.tok, self.world)
        self.model = Trainee(LlavaForConditionalGeneration(config(self.tok)),
                             len(self.world.entities), len(SHAPES), len(COLOR_NAMES),
                             attend=args.tower != "no-attention", compiled=not args.eager)
        self.model.bfloat16()
        self.words = [torch.tensor(self.encoder.shape_words),
                      torch.tensor(self.encoder.color_words),
                      torch.tensor(self.encoder.side_words)]
        self.step, self.spent, self.finished = 0, 0.0, False   # spent: seconds, to be told
        self.checkpoint = args.work / f"{args.stage}.pt"
        named = dict(self.model.named_parameters())
        for other in STARTS_FROM[args.stage]:
            saved = torch.load(args.work / f"{other}.pt", weights_only=True)
            if not saved["finished"] and rank == 0:
                print(f"note: stage {other} has not run to its end", flush=True)
            for name, value in saved["optimizer"]["copies"].items():
                named[name].data.copy_(value)
        for name, p in named.items():
            frozen = not learns(args.stage, name)
            frozen |= not self.model.attend and "self_attn" in name and "vision" in name
            p.requires_grad_(not frozen)
        self.optimizer = Optimizer([(n, p) for n, p in named.items() if p.requires_grad],
                                   args.rate)
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True)
            self.step, self.spent = saved["step"], saved["spent"]
            self.finished = self.step >= args.steps
            self.optimizer.load(saved["optimizer"])
        self.log = open(args.work / "train.log", "a") if rank == 0 else None

    def say(self, text):
        if self.log:
            print(text, flush=True)
            self.log.write(text + "\n")
            self.log.flush()

    def keep(self):
        if self.rank:
            return
        part = self.checkpoint.with_suffix(".part")
        torch.save({"step": self.step, "spent": self.spent, "finished": self.finished,
                    "optimizer": self.optimizer.state()}, part)
        part.replace(self.checkpoint)
        if self.args.stage == "text" and self.args.text_model:
            export_text(self.model.llava, self.tok, self.args.text_model, self.args.model)
        elif self.args.stage in ("naming", "joint"):
            export(self.model.llava, self.tok, self.args.model)

    def run(self):
        args = self.args
        number, _, warm, *_ = STAGES[args.stage]
        told = {k: v for k, v in vars(args).items()
                if k not in ("model", "work", "text_model", "meet")}
        self.say(f"# start {args.stage} step {self.step} spent {self.spent / 60:.1f} min {told}")
        batches = loader(args.model, number, (args.seed * 10 + number) * 10000000
                         + self.step * 10 + self.rank, args.pictures, args.shown, args.texts,
                         seen=str(args.work / f"seen.{args.stage}.{self.rank}.txt")
                         if args.stage != "tower" else None)
        stop, seen, prototypes = [], defaultdict(list), None
        signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
        signal.signal(signal.SIGINT, lambda *_: stop.append(True))
        clock = kept = time.time()
        waited = 0.0
        while not self.finished:
            if args.stage in ("naming", "joint") and (prototypes is None or self.step % 100 == 0):
                if prototypes is None or args.stage == "joint":
                    prototypes = told_flags(self.model, self.encoder, self.world)
            now = time.time()
            batch = next(batches)
            waited += time.time() - now
            train_step(self.model, batch, args.stage, self.encoder.image_at, self.words,
                       prototypes, seen)
            factor = schedule(self.step / args.steps, self.step, warm, args.flat)
            flat_gradient, halt = self.share(self.optimizer.gradients(), bool(stop))
            norm = self.optimizer.step(flat_gradient, factor)
            self.step += 1
            self.spent += time.time() - clock
            clock = time.time()
            self.finished = self.step >= args.steps
            if self.step % args.say_steps == 0:
                means = " ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in sorted(seen.items()))
                self.say(f"{args.stage} {self.step} min {self.spent / 60:.1f} waited "
                         f"{waited:.0f} rate {factor:.2f} norm {norm:.2f} {means}")
                seen.clear()
            if halt or self.finished or time.time() - kept > 60 * args.keep_minutes:
                self.keep()
                kept = time.time()
            if halt:
                break
        self.say(f"# end {args.stage} step {self.step} spent {self.spent / 60:.1f} min"
                 + (", finished" if self.finished else ""))

    def share(self, flat, stop):
        """Means of the gradients over the processes, and whether any is to stop."""
        if self.args.procs == 1:
            return flat, stop
        flat = torch.cat([flat, torch.tensor([float(stop)])])
        dist.all_reduce(flat)
        return flat[:-1] / self.args.procs, bool(flat[-1] > 0)


def work(rank, args):
    if args.procs > 1:
        dist.init_process_group("gloo", init_method=f"file://{args.meet}", rank=rank,
                                world_size=args.procs)
    Trainer(args, rank).run()


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--stage", required=True, choices=STAGES)
    ap.add_argument("--model", required=True, help="folder with world/ and tokenizer.json")
    ap.add_argument("--text-model", help="where stage text exports the decoder alone")
    ap.add_argument("--work", required=True, type=pathlib.Path, help="checkpoints and log")
    ap.add_argument("--steps", type=int, help="of the stage, whole")
    ap.add_argument("--scale", type=float, default=1.0, help="of the stage's usual steps")
    ap.add_argument("--pictures", type=int, help="pictures asked about, a batch and process")
    ap.add_argument("--shown", type=int, help="further pictures for the tower")
    ap.add_argument("--texts", type=int, help="text rows in a batch")
    ap.add_argument("--rate", type=float)
    ap.add_argument("--flat", type=float, help="share of the steps before the rate falls")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--tower", choices=("full", "no-attention"), default="full")
    ap.add_argument("--procs", type=int, default=1)
    ap.add_argument("--threads", type=int, default=1, help="of a single process")
    ap.add_argument("--eager", action="store_true", help="without torch.compile")
    ap.add_argument("--say-steps", type=int, default=25)
    ap.add_argument("--keep-minutes", type=float, default=5.0)
    args = ap.parse_args()
    _, steps, _, flat, rate, pictures, shown, texts = STAGES[args.stage]
    for name, value in (("steps", round(steps * args.scale)), ("flat", flat), ("rate", rate),
                        ("pictures", pictures), ("shown", shown), ("texts", texts)):
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.work.mkdir(parents=True, exist_ok=True)
    args.meet = str(args.work.resolve() / f"meet.{os.getpid()}")
    if args.procs == 1:
        return work(0, args)
    children = torch.multiprocessing.spawn(work, (args,), args.procs, join=False)
    signal.signal(signal.SIGTERM, lambda *_: [p.terminate() for p in children.processes])
    while not children.join():
        pass


if __name__ == "__main__":
    main()
