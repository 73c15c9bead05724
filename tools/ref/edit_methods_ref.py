"""ROME, MEMIT and MultEdit with prefix contexts and a KL term by PyTorch: autograd, torch.optim.Adam, hooks.

    python tools/ref/edit_methods_ref.py                  the fixture: tests/fixtures/edit/methods.json (numbers and texts)
    python tools/ref/edit_methods_ref.py --model MODEL --cases FILE -o OUT   other cases; build/tests/test_edit_ref OUT

Written from the papers (Meng et al. 2022, section 3; Meng et al. 2023, section 4; Basu et al. 2024) and their released
hyperparameters; one key everywhere in ROME. Formulas are written out with explicit inverses, and share nothing with the
library. Second moment of keys: C[i][j] = 0.5 exp(-|i - j| / 8) + 0.5 [i = j], the same in tests/test_edit_ref.c.
Versions: torch 2.13.0, transformers 5.23.0 (tools/ref/requirements.txt).
"""
import argparse
import pathlib

import torch
from PIL import Image
from tokenizers import Tokenizer

import capture_ref
from common import FIXTURES, ROOT, preprocess, read_json, write_json

TINY = "tests/fixtures/tiny-gqa"
PREFIXES = ["The weather was fine that day", "In the year of the great flood everyone left", "She bought bread"]
CAPITAL, CURRENCY = "What is the capital of this country?", "Which currency do people use in this country?"
ONE = [dict(picture="picture.png", question=CAPITAL, target=" there", words="this country")]
TEXT = [dict(picture=None, question="What is the capital of Peru?", target=" language", words="Peru")]
THREE = ONE + TEXT + [dict(picture="donor.png", question=CURRENCY, target=" triangle", words="this country")]
# clamp and decay are felt in some cases, the moment matrix in others
CASES = [
    dict(method="rome", asks=ONE, at="constraint-last", lo=1, hi=1, steps=25, lr=1.0, decay=0.5, clamp=60.0, kl=0.0625,
         prefixes=PREFIXES, moment=True, shrink=0.0),
    dict(method="rome", asks=TEXT, at="constraint-last", lo=2, hi=2, steps=20, lr=0.5, decay=1e-3, clamp=0.0, kl=1.0,
         prefixes=PREFIXES[:1], moment=False, shrink=0.0),
    dict(method="rome", asks=ONE, at="last-prompt", lo=0, hi=0, steps=15, lr=0.5, decay=1e-3, clamp=60.0, kl=0.0,
         prefixes=[], moment=True, shrink=0.3),
    dict(method="multedit", asks=ONE, at="last-prompt", lo=2, hi=2, steps=15, lr=0.5, decay=1e-3, clamp=0.0,
         kl=0.5, prefixes=PREFIXES, moment=False, shrink=0.0, share=0.1),
    dict(method="memit", asks=ONE, at="last-prompt", lo=0, hi=2, steps=15, lr=0.5, decay=0.5, clamp=10.0, kl=0.0625,
         prefixes=PREFIXES, moment=True, shrink=0.0, share=0.05),
    dict(method="memit", asks=THREE, at="last-prompt", lo=1, hi=3, steps=15, lr=0.5, decay=1e-3, clamp=0.0, kl=0.0,
         prefixes=[], moment=False, shrink=0.0, share=0.1),
]


class Net:
    def __init__(self, folder):
        self.folder = folder
        self.m = capture_ref.load(folder)
        for p in self.m.parameters():
            p.requires_grad_(False)
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.cfg = read_json(folder / "preprocessor_config.json")
        self.n_image = self.m.config.image_seq_length
        self.image = self.m.config.image_token_index if hasattr(self.m.config, "image_token_index") \
            else self.m.config.image_token_id
        self.layers = capture_ref.decoder(self.m).layers

    def ids(self, text):
        """ids with the picture's rows, and [begin, end) in text of each row"""
        enc = self.tok.encode(text)
        out, at = [], []
        for t, o in zip(enc.ids, enc.offsets):
            n = self.n_image if t == self.image else 1
            out += [t] * n
            at += [o] * n
        return out, at

    def row(self, text, ids, at, where, words):
        if where == "last-prompt":
            return len(ids) - 1
        begin = text.rindex(words)
        end = begin + len(words)
        return max(i for i, (a, b) in enumerate(at) if a < end and b > begin and b > a)

    def pixels(self, picture):
        return None if picture is None else torch.tensor(preprocess(Image.open(self.folder / picture), self.cfg))[None]

    def run(self, ids, pixels):
        kw = dict(pixel_values=pixels) if pixels is not None else {}
        return self.m(input_ids=torch.tensor([ids]), **kw).logits[0]


class Tap:
    """Hooks on one layer: what the MLP's last matrix reads, what it writes, what leaves the layer, at one row."""

    def __init__(self, net, layer, row):
        self.got, L = {}, net.layers[layer]
        self.h = [L.mlp.down_proj.register_forward_pre_hook(lambda m, a: self.got.update(k=a[0][0, row].clone())),
                  L.mlp.register_forward_hook(lambda m, a, o: self.got.update(z=o[0, row].clone())),
                  L.register_forward_hook(
                      lambda m, a, o: self.got.update(h=(o[0] if isinstance(o, tuple) else o)[0, row].clone()))]

    def __enter__(self):
        return self.got

    def __exit__(self, *a):
        for x in self.h:
            x.remove()


class Added:
    """delta is added to what the MLP of a layer writes at one row"""

    def __init__(self, net, layer, row, delta):
        def add(m, a, o):
            o = o.clone()
            o[0, row] = o[0, row] + delta
            return o
        self.h = net.layers[layer].mlp.register_forward_hook(add)

    def __enter__(self):
        pass

    def __exit__(self, *a):
        self.h.remove()


class Ask:
    def __init__(self, net, a, case):
        self.net, self.pix = net, net.pixels(a["picture"])
        picture = "<image>\n" if a["picture"] else ""
        self.prompts = []  # (ids, row), the bare one first
        for prefix in [None] + case["prefixes"]:
            text = f"USER: {picture}{prefix + '. ' if prefix else ''}{a['question']} ASSISTANT:"
            ids, at = net.ids(text)
            whole, _ = net.ids(text + a["target"])
            assert whole[:len(ids)] == ids
            self.target = whole[len(ids):]
            self.prompts.append((ids, net.row(text, ids, at, case["at"], a["words"])))
        kl = ("<image> " if a["picture"] else "") + a["words"] + " is a"
        ids, at = net.ids(kl)
        self.kl = (ids, net.row(kl, ids, at, case["at"], a["words"]))

    def logp(self, i=0):
        ids, _ = self.prompts[i]
        rows = self.net.run(ids + self.target[:-1], self.pix)[len(ids) - 1:]
        return torch.log_softmax(rows, -1)[range(len(self.target)), self.target]

    def p(self):
        return self.logp().sum().exp().item()

    def states(self, layer, i=0):
        ids, row = self.prompts[i]
        with Tap(self.net, layer, row) as got:
            self.net.run(ids, self.pix)
        return got

    def key(self, layer, halves):
        s = [self.states(layer, i) for i in range(len(self.prompts))]
        k, z = torch.stack([x["k"] for x in s]).double(), torch.stack([x["z"] for x in s]).double()
        if halves and len(s) > 1:
            return 0.5 * k[0] + 0.5 * k[1:].mean(0), None
        return k.mean(0), z.mean(0)

    def value(self, layer, norm, c):
        d = self.net.layers[layer].mlp.down_proj.weight.shape[0]
        delta = torch.zeros(d, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=c["lr"])
        ids, row = self.kl
        base = torch.log_softmax(self.net.run(ids, self.pix)[row], -1) if c["kl"] else None
        for _ in range(c["steps"]):
            adam.zero_grad()
            nll = torch.zeros(())
            for i, (_, r) in enumerate(self.prompts):
                with Added(self.net, layer, r, delta):
                    nll = nll - self.logp(i).mean() / len(self.prompts)
            if nll.item() < c.get("stop", 0):
                break
            loss = nll + c["decay"] * delta.norm() / norm ** 2 if delta.norm() > 0 else nll
            if c["kl"]:
                with Added(self.net, layer, row, delta):
                    new = torch.log_softmax(self.net.run(ids, self.pix)[row], -1)
                loss = loss + c["kl"] * (new.exp() * (new - base)).sum()
            loss.backward()
            adam.step()
            with torch.no_grad():
                if c["clamp"] and delta.norm() > c["clamp"] * norm:
                    delta *= c["clamp"] * norm / delta.norm()
        return delta.detach()


def moment(f, c):
    i = torch.arange(f).double()
    m = 0.5 * torch.exp(-(i[:, None] - i[None]).abs() / 8) + 0.5 * torch.eye(f).double() if c["moment"] \
        else torch.eye(f).double()
    return (1 - c["shrink"]) * m + c["shrink"] * m.diagonal().mean() * torch.eye(f).double()


def change(net, layer, dw):
    net.layers[layer].mlp.down_proj.weight.data += dw.float()


def run(net, c):
    asks = [Ask(net, a, c) for a in c["asks"]]
    before, a, L = [x.p() for x in asks], asks[0], c["hi"]
    saved = [l.mlp.down_proj.weight.data.clone() for l in net.layers]
    f = saved[0].shape[1]
    inv = torch.linalg.inv(moment(f, c))
    norms = []
    if c["method"] in ("rome", "multedit"):
        z0 = a.states(L)["z"]
        delta = a.value(L, z0.norm(), c)
        norms.append(delta.norm().item())
        k, mean = a.key(L, False)
        r = z0.double() + delta.double() - mean
        if c["method"] == "rome":
            u = inv @ k
            change(net, L, torch.outer(r, u) / (k @ u))
        else:
            lam = c["share"] * (k @ k)
            w = saved[L].double()
            new = (lam * w + torch.outer(w @ k + r, k)) @ torch.linalg.inv(lam * torch.eye(f).double() + torch.outer(k, k))
            change(net, L, new - w)
    else:
        z = []
        for x in asks:
            h = x.states(L)["h"]
            delta = x.value(L, h.norm(), c)
            norms.append(delta.norm().item())
            z.append(h.double() + delta.double())
        for layer in range(c["lo"], L + 1):
            K = torch.stack([x.key(layer, True)[0] for x in asks], 1)
            R = torch.stack([(zi - x.states(L)["h"].double()) / (L - layer + 1) for zi, x in zip(z, asks)], 1)
            lam = c["share"] * (K * K).sum(0).mean()
            change(net, layer, R @ K.T @ torch.linalg.inv(lam * moment(f, c) + K @ K.T))
    after = [x.p() for x in asks]
    for l, w in zip(net.layers, saved):
        l.mlp.down_proj.weight.data.copy_(w)
    return dict(c, p_before=before, p_after=after, delta_norm=sum(norms) / len(norms),
                rows=[x.prompts[0][1] for x in asks])


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", default=TINY)
    ap.add_argument("--cases")
    ap.add_argument("-o", "--out", default=FIXTURES / "edit" / "methods.json")
    a = ap.parse_args()
    torch.set_num_threads(1)
    net = Net(ROOT / a.model)
    out = [dict(run(net, c), model=a.model) for c in (read_json(pathlib.Path(a.cases)) if a.cases else CASES)]
    for x in out:
        print(x["method"], x["lo"], x["hi"], [f"{p:.6f} -> {q:.6f}" for p, q in zip(x["p_before"], x["p_after"])])
    write_json(pathlib.Path(a.out), out)


if __name__ == "__main__":
    main()
