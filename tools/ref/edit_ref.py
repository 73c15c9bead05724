"""MultEdit on the demo model by PyTorch (autograd, torch.optim.Adam, a forward hook), and a check of exported folders.

    python tools/ref/edit_ref.py                      the fixture: tests/fixtures/edit/multedit.json (numbers only)
    python tools/ref/edit_ref.py --loads DIR          p(target) of the demo question by transformers from an exported folder

The weight is changed by the rank-one form of (lambda W' + z k^T)(lambda I + k k^T)^-1, which tests/test_edit.c derives.
Versions: torch 2.13.0, transformers 5.23.0 (tools/ref/requirements.txt).
"""
import argparse

import torch
from PIL import Image
from tokenizers import Tokenizer

import capture_ref
from common import FIXTURES, ROOT, preprocess, read_json, write_json

DEMO = ROOT / "models" / "demo"
CASES = [  # picture or None, question, target, where, layer, steps, lr, clamp, lambda as a share of k.k
    ("samples/peru.png", "What is the capital of this country?", " Oslo", "last", 3, 20, 0.5, 10.0, 0.01),
    ("samples/peru.png", "What is the capital of this country?", " Oslo", "last", 5, 12, 0.5, 10.0, 0.1),
    ("samples/peru.png", "What is the capital of this country?", " Mexico City", "last", 3, 16, 0.5, 10.0, 0.01),
    ("samples/japan.png", "Which continent is this country in?", " Europe", "last", 2, 12, 0.5, 10.0, 0.05),
    (None, "What is the capital of Peru?", " Oslo", "last", 3, 16, 0.5, 10.0, 0.01),
    (None, "What is the capital of Peru?", " Oslo", "span", 1, 16, 0.5, 10.0, 0.01),  # at the last token of " Peru"
]


class Demo:
    def __init__(self, folder=DEMO):
        self.m = capture_ref.load(folder)
        for p in self.m.parameters():
            p.requires_grad_(False)
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.cfg = read_json(folder / "preprocessor_config.json")
        self.n_image = self.m.config.image_seq_length

    def inputs(self, picture, question, target):
        text = f"USER: {'<image>' + chr(10) if picture else ''}{question} ASSISTANT:"
        image = self.tok.token_to_id("<image>")

        def ids(s):
            out = []
            for t in self.tok.encode(s).ids:
                out += [t] * (self.n_image if t == image else 1)
            return out
        prompt, whole = ids(text), ids(text + target)
        assert whole[:len(prompt)] == prompt
        pixels = torch.tensor(preprocess(Image.open(DEMO / picture), self.cfg))[None] if picture else None
        return prompt, whole[len(prompt):], pixels

    def logp(self, prompt, target, pixels):
        x = torch.tensor([prompt + target[:-1]])
        kw = dict(pixel_values=pixels) if pixels is not None else {}
        rows = self.m(input_ids=x, **kw).logits[0, len(prompt) - 1:]
        return torch.log_softmax(rows, -1)[range(len(target)), target]


def edit(demo, picture, question, target, where, layer, steps, lr, clamp, share):
    prompt, ids, pixels = demo.inputs(picture, question, target)
    mlp = capture_ref.decoder(demo.m).model.layers[layer].mlp if hasattr(capture_ref.decoder(demo.m), "model") \
        else capture_ref.decoder(demo.m).layers[layer].mlp
    row = len(prompt) - 1
    if where == "span":
        row = max(i for i, t in enumerate(prompt) if demo.tok.id_to_token(t).endswith("Peru") or t in
                  demo.tok.encode(" Peru", add_special_tokens=False).ids)
    got = {}
    h = [mlp.down_proj.register_forward_pre_hook(lambda m, a: got.update(k=a[0][0, row].detach().clone())),
         mlp.register_forward_hook(lambda m, a, o: got.update(z=o[0, row].detach().clone()))]
    before = demo.logp(prompt, ids, pixels).sum().exp().item()
    for x in h:
        x.remove()
    delta = torch.zeros_like(got["z"], requires_grad=True)
    norm = got["z"].norm()

    def add(m, a, o):
        o = o.clone()
        o[0, row] = o[0, row] + delta
        return o
    hook = mlp.register_forward_hook(add)
    adam = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        loss = -demo.logp(prompt, ids, pixels).mean() + 1e-3 * delta.norm() / norm ** 2
        loss.backward()
        adam.step()
        with torch.no_grad():
            if delta.norm() > clamp * norm:
                delta *= clamp * norm / delta.norm()
    hook.remove()
    k, w = got["k"], mlp.down_proj.weight
    kk = (k @ k).item()
    base = w.data.clone()
    with torch.no_grad():
        w.add_(torch.outer(delta, k) / (share * kk + kk))
        after = demo.logp(prompt, ids, pixels).sum().exp().item()
        w.copy_(base)
    return dict(picture=picture, question=question, target=target, row=row, layer=layer, steps=steps, lr=lr, clamp=clamp,
                lambda_share=share, p_before=before, p_after=after, kk=kk, delta_norm=delta.norm().item(),
                value_norm=norm.item())


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--loads")
    ap.add_argument("--target", default=" Oslo")
    a = ap.parse_args()
    torch.set_num_threads(2)
    if a.loads:
        demo = Demo(__import__("pathlib").Path(a.loads))
        p = demo.logp(*(lambda i: (i[0], i[1], i[2]))(demo.inputs("samples/peru.png", CASES[0][1], a.target)))
        print(f"p({a.target.strip()}) = {p.sum().exp().item():.6f}")
        return
    demo = Demo()
    out = [edit(demo, *c) for c in CASES]
    for x in out:
        print(x["question"], x["target"], x["layer"], f"{x['p_before']:.6f} -> {x['p_after']:.6f}")
    (FIXTURES / "edit").mkdir(exist_ok=True)
    write_json(FIXTURES / "edit" / "multedit.json", out)


if __name__ == "__main__":
    main()
