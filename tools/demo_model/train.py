"""Trains the demo model from scratch; run again with the same --work to resume.

    MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 \\
    nice -n 5 python3 tools/demo_model/train.py --model models/demo --work DIR

Stage 1 trains the tower on what covers each patch and, apart from it, the
decoder on text; stage 2 joins them. Weights are held in bf16 as they are
exported, with f32 copies for the optimizer. The learning-rate schedule follows
the wall clock (--minutes) or, to be repeatable, a number of steps (--steps).
(The malloc settings keep glibc from returning big buffers at every step.)
"""
import argparse
import math
import pathlib
import signal
import time
from collections import defaultdict

import torch
from torch.nn.functional import cross_entropy
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from batch import Encoder, Stream
from export import export
from model import EARLY, NEAR, Trainee, config
from render import COLOR_NAMES, SHAPES, World

KIND_MIX = [0.26, 0.32, 0.26, 0.16]   # flag, two_flags, shapes, flag_shapes


class Optimizer:
    """Muon on the weight matrices, AdamW on the rest, over f32 copies."""

    def __init__(self, model, rate):
        self.rate, self.pairs = rate, []
        matrices, tables, vectors = [], [], []
        for name, p in model.named_parameters():
            copy = p.detach().float().clone().requires_grad_(True)
            self.pairs.append((p, copy))
            if p.ndim == 2 and ("layers." in name or "projector" in name):
                matrices.append(copy)
            elif "embed" in name and p.ndim > 1:
                tables.append(copy)
            else:
                vectors.append(copy)
        self.muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.02,
                                     adjust_lr_fn="match_rms_adamw")
        self.adam = torch.optim.AdamW([{"params": tables, "weight_decay": 0.0},
                                       {"params": vectors, "weight_decay": 0.0}],
                                      lr=rate, betas=(0.9, 0.98))

    def step(self, factor):
        norm = 0.0
        for p, copy in self.pairs:
            copy.grad = None if p.grad is None else p.grad.float()
            p.grad = None
            if copy.grad is not None:
                norm += copy.grad.square().sum()
        norm = float(norm) ** 0.5
        if not math.isfinite(norm):
            return norm
        for _, copy in self.pairs:
            if copy.grad is not None and norm > 1.0:
                copy.grad /= norm
        for opt in (self.muon, self.adam):
            for group in opt.param_groups:
                group["lr"] = self.rate * factor
            opt.step()
        with torch.no_grad():
            for p, copy in self.pairs:
                p.copy_(copy)
        return norm

    def state(self):
        return {"copies": [c.detach() for _, c in self.pairs],
                "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load(self, state):
        with torch.no_grad():
            for (p, copy), saved in zip(self.pairs, state["copies"]):
                copy.copy_(saved)
                p.copy_(saved)
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def schedule(done, step):
    """Warm-up, flat to 35 %, then a cosine to nearly zero."""
    fall = min(1.0, max(0.0, (done - 0.35) / 0.65))
    return min(1.0, (step + 1) / 150) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))


def dense_loss(model, features, labels, seen):
    loss = 0.0
    for i, head in enumerate(model.heads):
        logits = head(features).float().flatten(0, 1)
        truth = labels[:, i].flatten()
        mine = truth > 0
        weight = torch.where(mine, 1.0, 0.2)   # most patches are background
        weight[truth < 0] = 0.0
        each = cross_entropy(logits, truth, ignore_index=-100, reduction="none")
        loss = loss + (each * weight).sum() / weight.sum()
        if mine.any():
            right = (logits[mine].argmax(-1) == truth[mine]).float().mean()
            seen[("patch_flag", "patch_shape", "patch_color", "patch_side")[i]].append(float(right))
    return loss


def naming_loss(model, labels, words, seen):
    """Pulls the picture's tokens towards the embeddings of what they show."""
    logits = model.named_logits().float()
    loss = 0.0
    for i, table in enumerate(words):
        mine = labels[:, i] > 0
        if mine.any():
            target = table[labels[:, i][mine] - 1]
            loss = loss + cross_entropy(logits[mine], target)
    best = logits.argmax(-1)
    flags = labels[:, 0] > 0
    if flags.any():
        right = best[flags] == words[0][labels[:, 0][flags] - 1]
        seen["naming"].append(right.float().mean().item())
    return loss


def train_step(model, batch, stage, image_at, words, seen):
    features = model.see(batch["pixels"])
    dense = dense_loss(model, features, batch["labels"], seen)
    features = features[:batch["asked"]]
    if stage == 1:   # only the text rows, which come last
        hidden = model.read(batch["ids"], batch["positions"], batch["mask"])
    else:
        hidden = model.read(batch["ids"], batch["positions"], batch["mask"],
                            features, image_at)
    logits = model.answer_logits(hidden, batch["where"]).float()
    each = cross_entropy(logits, batch["target"], reduction="none")
    right = torch.ones(len(batch["tags"]), dtype=torch.bool)
    right[batch["owner"][logits.argmax(-1) != batch["target"]]] = False
    for tag, ok in zip(batch["tags"], right.tolist()):
        seen[tag].append(ok)
    seen["loss"].append(each.mean().item())
    # Every question counts the same, however long its answer is.
    share = 1.0 / batch["owner"].bincount().float()[batch["owner"]]
    loss = (each * share).sum() / share.sum() + (0.5 if stage == 2 else 1.0) * dense
    # Choosing among several things takes hops: from a told shape to its colour,
    # from the constraint words to the thing, and on to the answer. Asking for
    # each hop where it ends teaches them one by one.
    for name, depth in (("near", NEAR), ("early", EARLY)):
        where, target = batch[name + "_where"], batch[name + "_target"]
        if len(where):
            hop = model.logits_at(depth, where).float()
            seen[name].append((hop.argmax(-1) == target).float().mean().item())
            loss = loss + 0.4 * cross_entropy(hop, target)
            if name == "near":   # and stays a circle, like the picture's tokens
                loss = loss + 0.4 * cross_entropy(hop, batch["own_target"])
    if stage == 2:
        loss = loss + 0.3 * naming_loss(model, batch["labels"][:batch["asked"]], words, seen)
    loss.backward()


class Threads:
    """Finds out now and then whether one thread or two get more done: on a shared
    machine two threads that wait for each other can be slower than one."""

    def __init__(self, most):
        self.most, self.trial, self.times, self.best = most, 0, {}, most

    def before(self, step):
        if step % 60 == 0:
            self.trial, self.times = 6, {n: 0.0 for n in {1, self.most}}
        if self.trial:
            torch.set_num_threads(1 if self.trial > 3 else self.most)
        self.started = time.time()

    def after(self):
        if self.trial:
            self.times[torch.get_num_threads()] += time.time() - self.started
            self.trial -= 1
            if not self.trial:
                self.best = min(self.times, key=self.times.get)
                torch.set_num_threads(self.best)


def loader(args, stage, seed):
    root = pathlib.Path(args.model)
    asked, shown = (0, args.pictures * 5) if stage == 1 else (args.pictures, args.shown)
    stream = Stream(str(root / "world"), str(root / "tokenizer.json"), seed, asked, shown,
                    args.texts, KIND_MIX, args.named_share)
    return iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1,
                                            prefetch_factor=4))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, help="folder with world/ and tokenizer.json")
    ap.add_argument("--work", required=True, type=pathlib.Path, help="checkpoints and log")
    ap.add_argument("--minutes", type=float, default=80.0)
    ap.add_argument("--steps", type=int, default=0, help="overrides --minutes")
    ap.add_argument("--stage1", type=float, default=0.1, help="share of the first stage")
    ap.add_argument("--pictures", type=int, default=14, help="pictures asked about, a batch")
    ap.add_argument("--shown", type=int, default=16, help="further pictures for the tower")
    ap.add_argument("--texts", type=int, default=8, help="text rows in a batch")
    ap.add_argument("--named-share", type=float, default=0.35)
    ap.add_argument("--rate", type=float, default=1.5e-3)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--export-minutes", type=float, default=10.0)
    args = ap.parse_args()

    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    tok = Tokenizer.from_file(f"{args.model}/tokenizer.json")
    world = World(f"{args.model}/world")
    model = Trainee(LlavaForConditionalGeneration(config(tok)), len(world.countries),
                    len(SHAPES), len(COLOR_NAMES))
    model.bfloat16()
    optimizer = Optimizer(model, args.rate)
    encoder = Encoder(tok)
    words = [torch.tensor([encoder.words(" " + c["name"])[0] for c in world.countries]),
             torch.tensor(encoder.shape_words), torch.tensor(encoder.color_words)]
    step, spent = 0, 0.0
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        step, spent = saved["step"], saved["spent"]
        optimizer.load(saved["optimizer"])
    log = open(args.work / "train.log", "a")

    def say(text):
        print(text, flush=True)
        log.write(text + "\n")
        log.flush()

    def keep():
        part = checkpoint.with_suffix(".part")
        torch.save({"step": step, "spent": spent, "optimizer": optimizer.state()}, part)
        part.replace(checkpoint)
        export(model.llava, tok, args.model)

    told = {k: v for k, v in vars(args).items() if k not in ("model", "work")}
    size = sum(p.numel() for p in model.llava.parameters())
    say(f"# start step {step} spent {spent / 60:.1f} min, {size} parameters, {told}")
    threads = Threads(args.threads)
    stage, batches, seen = 0, None, defaultdict(list)
    exported = clock = time.time()
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    while not stop:
        done = step / args.steps if args.steps else spent / (60 * args.minutes)
        if done >= 1:
            break
        now = 1 if done < args.stage1 else 2
        if now != stage:
            stage, batches = now, loader(args, now, args.seed * 100000 + step)
        threads.before(step)
        train_step(model, next(batches), stage, encoder.image_at, words, seen)
        norm = optimizer.step(schedule(done, step))
        threads.after()
        step += 1
        spent += time.time() - clock
        clock = time.time()
        if step % 50 == 0:
            means = " ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in sorted(seen.items()))
            say(f"step {step} min {spent / 60:.1f} stage {stage} threads {threads.best} "
                f"norm {norm:.2f} {means}")
            seen.clear()
        if time.time() - exported > 60 * args.export_minutes:
            keep()
            exported = time.time()
    keep()
    say(f"# end step {step} spent {spent / 60:.1f} min")


if __name__ == "__main__":
    main()
