"""Muon on the weight matrices, AdamW on the rest, over f32 copies of bf16 weights."""
import math

import torch

NEWTON = (3.4445, -4.7750, 2.0315)   # Jordan et al. 2024, "Muon", the quintic iteration


def orthogonal(g):
    """The nearest semi-orthogonal matrix, roughly."""
    a, b, c = NEWTON
    x = g.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T.contiguous()
    x = x / (x.float().norm() + 1e-7).bfloat16()
    for _ in range(5):
        s = x @ x.T
        x = torch.addmm(x, torch.addmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Optimizer:
    """`named` are the (name, parameter) pairs that learn; the others stay as they are."""

    def __init__(self, named, rate, decay=0.02):
        self.rate, self.decay = rate, decay
        self.pairs, self.groups, rest = {}, {}, []
        for name, p in named:
            copy = p.detach().float().clone()
            self.pairs[name] = (p, copy)
            if p.ndim == 2 and ("layers." in name or "projector" in name):
                self.groups.setdefault(tuple(p.shape), []).append(name)
            else:
                rest.append(copy.requires_grad_(True))
        self.momentum = {s: torch.zeros(len(n), *s) for s, n in self.groups.items()}
        self.adam = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0,
                                      foreach=True) if rest else None

    def gradients(self):
        """All gradients in one flat f32 tensor, and the weights' own are cleared."""
        flat = torch.cat([(torch.zeros(p.numel()) if p.grad is None else
                           p.grad.detach().reshape(-1).float()) for p, _ in self.pairs.values()])
        for p, _ in self.pairs.values():
            p.grad = None
        return flat

    @torch.no_grad()
    def step(self, flat, factor):
        norm = float(flat.norm())
        if not math.isfinite(norm):
            return norm
        if norm > 1.0:
            flat = flat / norm
        grads, at = {}, 0
        for name, (p, _) in self.pairs.items():
            grads[name] = flat[at:at + p.numel()].view_as(p)
            at += p.numel()
        rate = self.rate * factor
        for shape, names in self.groups.items():
            g, m = torch.stack([grads[n] for n in names]), self.momentum[shape]
            m.mul_(0.95).add_(g)
            update = g.add_(m, alpha=0.95)
            scale = 0.2 * math.sqrt(max(shape)) * rate   # as large as a step of AdamW
            for n, u in zip(names, update):
                self.pairs[n][1].mul_(1 - rate * self.decay).add_(orthogonal(u), alpha=-scale)
        if self.adam:
            for name, (p, copy) in self.pairs.items():
                if copy.requires_grad:
                    copy.grad = grads[name]
            for group in self.adam.param_groups:
                group["lr"] = rate
            self.adam.step()
        self.write()
        return norm

    @torch.no_grad()
    def write(self):
        for p, copy in self.pairs.values():
            p.copy_(copy)

    def state(self):
        return {"copies": {n: c.detach() for n, (_, c) in self.pairs.items()},
                "momentum": self.momentum, "adam": self.adam and self.adam.state_dict()}

    @torch.no_grad()
    def load(self, state):
        for name, saved in state["copies"].items():
            self.pairs[name][1].copy_(saved)
        self.write()
        self.momentum = state["momentum"]
        if self.adam:
            self.adam.load_state_dict(state["adam"])
