"""MMEdit's measures by PyTorch: E3 and E4, on two tiny random models, before and after two edits.

    python tools/ref/mmedit_ref.py      tests/fixtures/mmedit/{records.json,*.png,expected.safetensors}

Written from the definitions alone (labels are the whole text's tokens behind as many as the prompt has; argmax under
teacher forcing; ordered top-k over all positions; KL before || after), with transformers' own forward and full logits. The
two edits: one fixed rank-one change of a down projection, and for each record a bias of the head that lifts the target's
tokens to p = 0.95. `slack` counts the entries that a difference of 1e-4 in a logit could turn.
Versions: torch 2.13.0, transformers 5.23.0, tokenizers 0.23.3 (tools/ref/requirements.txt).
"""
import json
import math

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from transformers import Blip2ForConditionalGeneration, LlavaForConditionalGeneration

from common import FIXTURES, make_picture, preprocess, read_json

OUT = FIXTURES / "mmedit"
N, PICTURES, GOAL, NEAR = 56, 5, 0.95, 1e-4
MODELS = {"tiny-gqa": LlavaForConditionalGeneration, "tiny-blip2": Blip2ForConditionalGeneration}
WORDS = ["cat", "red", "two men", "blue car", "yes", "no", "3", "on the table", "München", "a dog runs", "wood", "12:30"]


def records():
    rng = np.random.default_rng(7)

    def pick(a):
        return a[int(rng.integers(len(a)))]
    out = []
    for i in range(N):
        q = pick(["What is %s?", "Where is the %s?", "Is it %s?", "Which %s is it?"]) % pick(WORDS[:6])
        alt = pick(WORDS)
        if i % 9 == 4:
            alt = pick([" %s", "%s ", "%s\n", "%s. "]) % alt
        out.append({"src": q, "pred": pick(WORDS), "rephrase": q if i % 11 == 3 else pick(["Say: ", "So,\n"]) + q.lower(),
                    "alt": alt, "image": f"{i % PICTURES}.png", "image_rephrase": f"{(i + 1) % PICTURES}.png",
                    "loc": "nq question: who " + pick(["was", "is", "saw"]) + " " + pick(WORDS),
                    "loc_ans": pick(WORDS) + pick(["", " é", ", or not"]), "m_loc": f"{(i + 2) % PICTURES}.png",
                    "m_loc_q": "How many " + pick(WORDS) + "?", "m_loc_a": pick(WORDS)})
    return out


class Model:
    def __init__(self, name):
        folder = FIXTURES / name
        self.blip = name == "tiny-blip2"
        self.m = MODELS[name].from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        cfg = read_json(folder / "preprocessor_config.json")
        self.pixels = [torch.tensor(preprocess(Image.open(OUT / f"{i}.png"), cfg))[None] for i in range(PICTURES)]
        self.image = self.m.config.image_token_id
        self.rows = self.m.config.num_query_tokens if self.blip else self.m.config.image_seq_length
        text = self.m.language_model.model if hasattr(self.m, "language_model") else self.m.model.language_model
        layers = text.decoder.layers if self.blip else getattr(text, "layers", None)
        self.down = (layers[1].fc2 if self.blip else layers[1].mlp.down_proj).weight
        self.bias = None

    def ids(self, picture, text):
        if picture is None or self.blip:
            t = self.tok.encode(text, add_special_tokens=False).ids
            return t if picture is None else [self.image] * self.rows + t
        out = []
        for t in self.tok.encode("<image>\n" + text, add_special_tokens=False).ids:
            out += [t] * (self.rows if t == self.image else 1)
        return out

    def run(self, picture, prompt, answer):
        """(logits of every position [T, V], how many tokens are labels, the labels)"""
        whole, n = self.ids(picture, prompt + " " + answer), len(self.ids(picture, prompt))
        x = torch.tensor([whole])
        kw = {} if picture is None else dict(pixel_values=self.pixels[picture])
        with torch.no_grad():
            if picture is None and self.blip:
                logits = self.m.language_model(input_ids=x).logits[0]
            else:
                logits = self.m(input_ids=x, attention_mask=torch.ones_like(x), **kw).logits[0]
        return (logits if self.bias is None else logits + self.bias).double(), len(whole) - n, whole[n:]


def near(logits, k):
    """Per position: could one of the k highest entries change its place?"""
    top = logits.topk(min(k + 1, logits.shape[-1]), -1).values
    return (top[:, :-1] - top[:, 1:]).lt(NEAR)


def answer(run):
    logits, n, labels = run
    rows = logits[-n - 1:-1]
    hit = rows.argmax(-1).eq(torch.tensor(labels))
    nll = -torch.log_softmax(rows, -1)[range(n), labels].mean()
    return [hit.double().mean().item(), float(hit.all()), nll.item()], near(rows, 1).sum().item() / n


def local(a, b, k):
    (x, n, _), (y, _, _) = a, b
    same = x.topk(k, -1).indices.eq(y.topk(k, -1).indices).double()
    kl = (torch.softmax(x, -1) * (torch.log_softmax(x, -1) - torch.log_softmax(y, -1))).sum(-1)
    tie = 2 * (near(x, k) | near(y, k)).double().sum().item() / same.numel()
    rows = slice(-n - 1, -1)
    some = 2 * (near(x[rows], k) | near(y[rows], k)).double().sum().item() / same[rows].numel()
    return [same.mean().item(), same[rows].mean().item(), kl.mean().item(), kl[rows].mean().item()], [tie, some]


def asks(r, protocol):
    """(picture, prompt, answer) of the three edit inputs and the two unrelated questions."""
    def short(q):
        return f"Question: {q} Short answer:"

    def at(key):
        return int(r[key].split(".")[0])
    ours = short if protocol == "E3" else (lambda q: q)
    return [(at("image"), ours(r["src"]), r["alt"]), (at("image"), ours(r["rephrase"]), r["alt"]),
            (at("image_rephrase"), ours(r["src"]), r["alt"]), (None, r["loc"], r["loc_ans"]),
            (at("m_loc"), short(r["m_loc_q"]), r["m_loc_a"])]


def bias_of(run, vocab):
    logits, n, labels = run
    out = torch.zeros(vocab)
    for row, t in zip(logits[-n - 1:-1], labels):
        lp = torch.log_softmax(row, -1)[t].item()
        p = math.exp(lp)
        if p < GOAL:
            out[t] = max(out[t].item(), math.log(GOAL / (1 - GOAL)) + math.log(1 - p) - lp)
    return out


def measure(m, list_, protocol, edit, out, name):
    """Rows of `name`.*: before [N,3,3], after [N,3,3], local [N,2,4], and the slack of each share."""
    before, after, sides, slack, tie = [], [], [], [], []
    for r in list_:
        q = asks(r, protocol)
        a = [m.run(*x) for x in q]
        if edit is None:
            m.bias = bias_of(a[0], a[0][0].shape[-1])
        else:
            m.down.data += edit
        b = [m.run(*x) for x in q]
        if edit is None:
            m.bias = None
        else:
            m.down.data -= edit
        x, y = [answer(t) for t in a[:3]], [answer(t) for t in b[:3]]
        z = [local(a[3], b[3], 1), local(a[4], b[4], 10)]
        before.append([t[0] for t in x])
        after.append([t[0] for t in y])
        slack.append([[t[1] for t in x], [t[1] for t in y]])
        sides.append([t[0] for t in z])
        tie.append([t[1] for t in z])
    for key, value in dict(before=before, after=after, local=sides, slack=slack, tie=tie).items():
        out[f"{name}.{key}"] = np.array(value, np.float32)
    t, s = np.array(after), np.array(sides)
    print(name, "acc", t[..., 0].mean(0).round(3), "exact", t[..., 1].mean(0).round(3), "local", s.mean(0).round(3).tolist(),
          "slack", np.array(slack).sum().round(2), np.array(tie).sum().round(3))


def main():
    OUT.mkdir(exist_ok=True)
    for i in range(PICTURES):
        make_picture(28, 28, 40 + i).quantize(48).save(OUT / f"{i}.png", optimize=True)
    list_ = records()
    (OUT / "records.json").write_text(json.dumps(list_, ensure_ascii=False, indent=0) + "\n")
    out = {}
    for name in MODELS:
        m = Model(name)
        rng = np.random.default_rng(3)
        n, k = m.down.shape
        u, v = rng.normal(size=n).astype(np.float32), rng.normal(size=k).astype(np.float32)
        u *= np.float32(2.0 / np.linalg.norm(u))
        v *= np.float32(m.down.norm().item() / np.linalg.norm(v))
        out[f"{name}.u"], out[f"{name}.v"] = u, v
        fixed = torch.outer(torch.tensor(u), torch.tensor(v))
        for protocol in ("E3", "E4"):
            measure(m, list_, protocol, fixed, out, f"{name}.{protocol}.fixed")
            measure(m, list_, protocol, None, out, f"{name}.{protocol}.bias")
    save_file(out, OUT / "expected.safetensors")


if __name__ == "__main__":
    main()
