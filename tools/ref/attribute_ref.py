"""Log-probability attribution of a transformers model, every score by its formula, one vector at a time, in float64.

    python tools/ref/attribute_ref.py                      the fixtures: tests/fixtures/attribution/
    python tools/ref/attribute_ref.py --demo               tests/fixtures/attribution/demo.safetensors (a minute)
    python tools/ref/attribute_ref.py MODEL [--image FILE] --prompt TEXT -o FILE

Notation: h_l layer input, A_l and F_l what attention and MLP add, all at the last row; U head, g and b weight and bias of
the final norm; w the token analysed. B(x) = U (g (x - m) r): m = 0 and r = 1/sqrt(mean(h^2) + eps) for RMSNorm, m = mean(x)
and r = 1/sqrt(var(h) + eps) for LayerNorm, h the final state before the norm. To a state, U b and the head's bias are added.
"""
import argparse

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

import capture_ref
from common import FIXTURES, IMAGE, ROOT, preprocess, read_json, save_states, sha256

EPS = 1e-3  # also scored with this one, to show that it is read
HEADS, VIEWS, NEURON_BATCH = 2, 3, 512


class Model:
    """Weights of one decoder in float64, and one captured forward pass."""

    def __init__(self, folder):
        self.hf = capture_ref.load(folder)
        self.row, self.layers, self.find = capture_ref.parts(self.hf)
        self.text = capture_ref.decoder(self.hf)
        c = self.text.config
        self.H = c.num_attention_heads
        self.kv = getattr(c, "num_key_value_heads", None) or self.H
        self.eps = getattr(c, "rms_norm_eps", None)
        self.layer_norm = self.eps is None
        if self.layer_norm:
            self.eps = self.find(self.text, self.row["norm"]).eps
        norm = self.find(self.text, self.row["norm"])
        self.U = self.hf.lm_head.weight.detach().double()
        bias = getattr(self.hf.lm_head, "bias", None)
        self.head_bias = torch.zeros(len(self.U), dtype=torch.float64) if bias is None else bias.detach().double()
        self.g = norm.weight.detach().double()
        self.b = norm.bias.detach().double() if getattr(norm, "bias", None) is not None else torch.zeros_like(self.g)

    def matrix(self, i, name):
        """[outputs, inputs] and bias of a layer's projection; GPT-2 keeps the transpose."""
        m = self.find(self.layers[i], self.row[name])
        w = m.weight.detach().double()
        w = w.T if type(m).__name__ == "Conv1D" else w
        return w, (m.bias.detach().double() if m.bias is not None else torch.zeros(w.shape[0], dtype=torch.float64))

    def run(self, ids, pixels):
        s = {k: v.double() for k, v in capture_ref.capture(self.hf, ids, pixels).items()}
        self.s, self.T = s, len(ids)
        self.h = [s[f"decoder.{i}.resid_pre"] for i in range(len(self.layers))]
        self.A = [s[f"decoder.{i}.attn_out"] for i in range(len(self.layers))]
        self.F = [s[f"decoder.{i}.mlp_out"] for i in range(len(self.layers))]
        self.m = [s[f"decoder.{i}.mlp_act"] for i in range(len(self.layers))]
        self.alpha = [s[f"decoder.{i}.pattern"][:, -1] for i in range(len(self.layers))]  # [heads, keys] of the last row
        v = [s[f"decoder.{i}.v"].view(self.T, self.kv, -1) for i in range(len(self.layers))]
        self.v = [x.repeat_interleave(self.H // self.kv, 1) for x in v]  # [keys, heads, head_dim]
        self.freeze(self.eps)

    def freeze(self, eps):
        h = self.s[f"decoder.{len(self.layers) - 1}.resid_post"][-1]
        m = h.mean() if self.layer_norm else 0
        self.r = 1 / torch.sqrt(((h - m) ** 2).mean() + eps)

    def B(self, x, state=False):
        y = self.g * ((x - (x.mean(-1, keepdim=True) if self.layer_norm else 0)) * self.r)
        y = (y + self.b if state else y) @ self.U.T
        return y + self.head_bias if state else y

    def o(self, i, j, vector):
        """Head j's columns of the output projection, times one or many vectors of head_dim."""
        w, _ = self.matrix(i, "o")
        n = w.shape[1] // self.H
        return vector @ w[:, j * n:(j + 1) * n].T


def increase(model, state, vectors, targets):
    """log p(w | state + vector) - log p(w | state), and B(vector)_w: two arrays [targets, vectors]"""
    base = torch.log_softmax(model.B(state, True), -1)[targets]
    inc, logit = [], []
    for v in vectors:
        inc.append(torch.log_softmax(model.B(state + v, True), -1)[targets] - base)
        logit.append(model.B(v)[targets])
    return torch.stack(inc, 1), torch.stack(logit, 1)


def scores(m, targets):
    out = {}

    def put(name, pair, shape):
        for kind, x in zip(("increase", "logit"), pair):
            out[f"{name}.{kind}"] = x.reshape(len(targets), *shape)

    L, last = len(m.layers), -1
    rows = {"attn": [], "mlp": [], "head": []}
    for i in range(L):
        h, a, f = m.h[i][last], m.A[i][last], m.F[i][last]
        rows["attn"].append(increase(m, h, [a], targets))
        rows["mlp"].append(increase(m, h + a, [f], targets))
        heads = [m.o(i, j, m.alpha[i][j] @ m.v[i][:, j]) for j in range(m.H)]
        total = sum(heads) + m.matrix(i, "o")[1]
        assert torch.allclose(total, a, atol=1e-4, rtol=1e-4), (i, (total - a).abs().max())
        rows["head"].append(increase(m, h, heads, targets))
    for name, parts in rows.items():
        pair = [torch.cat([p[k] for p in parts], 1) for k in range(2)]
        put(name, pair, (L, m.H) if name == "head" else (L,))
    out["embed.logit"] = m.B(m.h[0][last])[targets]
    out["constants"] = m.B(torch.zeros_like(m.g), True)[targets]
    whole = out["constants"] + out["embed.logit"] + out["attn.logit"].sum(1) + out["mlp.logit"].sum(1)
    assert torch.allclose(whole, m.s["logits"][last][targets], atol=1e-3), (whole, m.s["logits"][last][targets])
    out["avg_attention"] = sum(a.sum(0) for a in m.alpha) / (L * m.H)
    return out


def best_heads(out, count):
    x = out["head.increase"][0]
    order = sorted(range(x.numel()), key=lambda k: (-float(x.view(-1)[k]), k))
    return [(k // x.shape[1], k % x.shape[1]) for k in order[:count]]


def positions(m, targets, heads, out):
    """Positions, attention neurons and vocabulary views of the given heads."""
    pos, dims, weight = [], [], []
    for i, j in heads:
        h = m.h[i][-1]
        written = [m.o(i, j, m.alpha[i][j][p] * m.v[i][p, j]) for p in range(m.T)]
        pos.append(increase(m, h, written, targets))
        weight.append(m.alpha[i][j])
        one = []
        for p in range(m.T):
            x = torch.diag(m.alpha[i][j][p] * m.v[i][p, j])
            one += list(m.o(i, j, x))
        dims.append(increase(m, h, one, targets))
    for name, parts, shape in (("pos", pos, (m.T,)), ("attn_neuron", dims, (m.T, m.v[0].shape[-1]))):
        for k, kind in enumerate(("increase", "logit")):
            out[f"{name}.{kind}"] = torch.stack([p[k] for p in parts], 1).reshape(len(targets), len(heads), *shape)
    out["weight"] = torch.stack(weight)
    out["heads"] = np.array(heads, np.int32)
    i, j = heads[0]
    x = out["pos.increase"][0, 0]
    some = sorted(range(m.T), key=lambda p: (-float(x[p]), p))[:VIEWS]
    out["view.rows"] = np.array(some, np.int32)
    for name, vector in (("input", lambda p: m.h[i][p]),
                         ("key", lambda p: m.h[i][p] - m.h[0][p] - sum(m.F[k][p] for k in range(i))),
                         ("value", lambda p: m.h[i][p] - m.h[0][p] - sum(m.A[k][p] for k in range(i))),
                         ("ov", lambda p: m.o(i, j, m.alpha[i][j][p] * m.v[i][p, j]))):
        out[f"view.{name}"] = torch.stack([m.B(vector(p), name == "input") for p in some])


def neurons(m, targets, out):
    pairs = []
    for i in range(len(m.layers)):
        w, _ = m.matrix(i, "fc2")
        act = m.m[i][-1]
        state = m.h[i][-1] + m.A[i][-1]
        for at in range(0, len(act), NEURON_BATCH):
            f = (act[at:at + NEURON_BATCH, None] * w.T[at:at + NEURON_BATCH])
            pairs.append(increase(m, state, list(f), targets))
    for k, kind in enumerate(("increase", "logit")):
        out[f"neuron.{kind}"] = torch.cat([p[k] for p in pairs], 1).reshape(len(targets), len(m.layers), -1)


def lens(m, rows, out):
    """Every state of some rows through the model's own final norm and head; picture rows against the input embeddings."""
    norm, states = m.find(m.text, m.row["norm"]), [m.h[0]]
    states += [m.s[f"decoder.{i}.resid_post"] for i in range(len(m.layers))]
    with torch.no_grad():
        x = torch.stack([s[rows] for s in states]).float()
        out["lens"] = m.hf.lm_head(norm(x))  # [layers + 1, rows, vocab]
    out["lens.rows"] = np.array(rows, np.int32)
    if "decoder.image_embed" in m.s:
        e, x = m.hf.get_input_embeddings().weight.detach().double(), m.s["decoder.image_embed"]
        out["embedding.dot"] = x @ e.T
        out["embedding.cosine"] = (x / x.norm(dim=1, keepdim=True)) @ (e / e.norm(dim=1, keepdim=True)).T


def attribute(folder, ids, pixels, small=True):
    m = Model(folder)
    with torch.no_grad():
        m.run(ids, pixels)
        top = m.s["logits"][-1].topk(2).indices.tolist()
        out = scores(m, top)
        heads = best_heads(out, HEADS)
        positions(m, top, heads, out)
        if small:
            neurons(m, top, out)
            last_patch = [i for i, t in enumerate(ids) if t == IMAGE][-1:]
            lens(m, last_patch + [m.T // 2, m.T - 1], out)
        m.freeze(EPS)
        out["head.increase.eps"] = scores_of_heads(m, top)
    out["targets"] = np.array(top, np.int32)
    out["eps"] = np.array([EPS], np.float32)
    return out


def scores_of_heads(m, targets):
    x = [increase(m, m.h[i][-1], [m.o(i, j, m.alpha[i][j] @ m.v[i][:, j]) for j in range(m.H)], targets)[0]
         for i in range(len(m.layers))]
    return torch.stack(x, 1)


def expand(folder, tok, prompt, rows):
    return [t for x in tok.encode(prompt).ids for t in [x] * (rows if x == IMAGE else 1)]


def make(folder, prompt, picture, path, small=True, meta=None):
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pixels, rows = None, 0
    if picture:
        pixels = preprocess(Image.open(picture), read_json(folder / "preprocessor_config.json"))
        config = read_json(folder / "config.json")
        rows = (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2
    out = attribute(folder, expand(folder, tok, prompt, rows), pixels, small)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_states(path, out, {"prompt": prompt, "regenerate": "python tools/ref/attribute_ref.py",
                            "model_sha256": sha256(folder / "model.safetensors"), **(meta or {})})
    best = [f"{i}_{j} {float(out['head.increase'][0, i, j]):+.4f}" for i, j in out["heads"]]
    print(f"{path}: {path.stat().st_size // 1024} KiB, target {tok.decode([int(out['targets'][0])])!r}, heads {best}")


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model", nargs="?")
    a.add_argument("--image")
    a.add_argument("--prompt")
    a.add_argument("--demo", action="store_true")
    a.add_argument("-o", "--output")
    a = a.parse_args()
    from pathlib import Path
    if a.model:
        make(Path(a.model), a.prompt, a.image, Path(a.output), small=False)
    elif a.demo:
        demo = ROOT / "models" / "demo"
        make(demo, "USER: <image>\nWhat is the capital of this country? ASSISTANT:", demo / "samples" / "peru.png",
             FIXTURES / "attribution" / "demo.safetensors", small=False,
             meta={"picture": "models/demo/samples/peru.png"})
    else:
        for name, prompt, picture in (
                ("tiny-gqa", "USER: <image>\nWhat is the capital of this country? ASSISTANT:", "picture.png"),
                ("tiny-llama", "USER: What is the capital of the country? ASSISTANT:", None),
                ("tiny-opt", "What is the capital of this country?", None),
                ("tiny-phi", "What is the capital of this country?", None),
                ("tiny-gpt2", "What is the capital of this country?", None)):
            folder = FIXTURES / name
            make(folder, prompt, picture and folder / picture, FIXTURES / "attribution" / f"{name}.safetensors",
                 meta={"picture": f"tests/fixtures/{name}/{picture}"} if picture else None)


if __name__ == "__main__":
    main()
