"""Maps of the explainers by a transformers model in float64, each by its definition: one forward pass per patch, autograd
for gradients, whole matrices for what flows through the layers.

    python tools/ref/explain_ref.py        tests/fixtures/explain/<model>.safetensors
"""
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

import capture_ref
from attribute_ref import expand
from common import FIXTURES, IMAGE, preprocess, read_json, save_states, sha256

STEPS, SIGMA = 8, 2.0
PROMPT = "USER: <image>\nWhat is the capital of this country? ASSISTANT:"


class Model:
    def __init__(self, folder, picture):
        self.hf = capture_ref.load(folder).double()
        self.text = capture_ref.decoder(self.hf)
        self.row, self.layers, self.find = capture_ref.parts(self.hf)
        self.kept = []
        capture_ref.library(self.layers[0]).eager_attention_forward = self.attention
        vision = read_json(folder / "config.json")["vision_config"]
        self.patch, self.side = vision["patch_size"], vision["image_size"] // vision["patch_size"]
        tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.pixels = torch.as_tensor(preprocess(Image.open(picture), read_json(folder / "preprocessor_config.json")))
        self.pixels = self.pixels.double().reshape(1, *self.pixels.shape[-3:])
        ids = expand(folder, tok, PROMPT, self.side ** 2)
        self.ids = torch.tensor([ids])
        self.at = [i for i, t in enumerate(ids) if t == IMAGE]
        self.T = len(ids)
        self.x = self.vectors(self.pixels)          # decoder's input [T, d]
        self.visual = self.x[self.at]
        self.target = int(self.logits(self.x)[-1].argmax())

    def attention(self, module, query, key, value, mask, scaling=None, **kwargs):
        """As the library's eager attention, but the softmax is float64 as well, and the weights' gradients are kept."""
        n = module.num_key_value_groups
        p = torch.softmax(query @ key.repeat_interleave(n, 1).transpose(2, 3) * scaling + mask, -1)
        if p.requires_grad:
            p.retain_grad()
        self.kept.append(p)
        return (p @ value.repeat_interleave(n, 1)).transpose(1, 2).contiguous(), p

    def vectors(self, pixels):
        seen = {}

        def hook(m, args, kwargs):
            seen["x"] = kwargs["inputs_embeds"].detach()[0].clone()
        h = self.text.register_forward_pre_hook(hook, with_kwargs=True)
        with torch.no_grad():
            self.hf(input_ids=self.ids, pixel_values=pixels)
        h.remove()
        return seen["x"]

    def logits(self, x, mask=None):
        if mask is None:
            mask = torch.triu(torch.full((self.T, self.T), float("-inf"), dtype=torch.float64), 1)
        out = self.text(inputs_embeds=x[None], attention_mask=mask[None, None], use_cache=False)
        return self.hf.lm_head(out.last_hidden_state[0])

    def logp(self, x, mask=None):
        return torch.log_softmax(self.logits(x, mask)[-1], -1)[self.target]

    def with_patterns(self, x):
        """Logits and every layer's weights [heads, T, T], kept in the graph."""
        self.kept = []
        return self.logits(x), self.kept

    def hidden(self):
        """States after every layer."""
        kept = []
        hooks = [layer.register_forward_hook(lambda m, a, y: kept.append((y[0] if isinstance(y, tuple) else y)[0]))
                 for layer in self.layers]
        self.logits(self.x)
        for h in hooks:
            h.remove()
        return kept


def gaussian(x, sigma):
    """[h, w, c], separable, ends repeated, 3 sigma."""
    reach = int(np.ceil(3 * sigma))
    k = torch.arange(-reach, reach + 1)
    g = torch.exp(-0.5 * (k.double() / sigma) ** 2)
    for axis in (1, 0):
        n = x.shape[axis]
        idx = (torch.arange(n)[:, None] + k[None]).clamp(0, n - 1)
        x = (x.index_select(axis, idx.reshape(-1)).unflatten(axis, idx.shape)
             * g.reshape([-1 if a == axis + 1 else 1 for a in range(4)])).sum(axis + 1) / g.sum()
    return x


def maps(m):
    out, n, d = {}, len(m.at), m.x.shape[1]
    mean = m.visual.mean(0)
    with torch.no_grad():
        clean = m.logp(m.x)
        blur = gaussian(m.visual.reshape(m.side, m.side, d), SIGMA).reshape(n, d)
        for name, value in (("remove-zero", torch.zeros(n, d).double()), ("remove-mean", mean.expand(n, d)),
                            ("remove-blur", blur)):
            falls = []
            for i, row in enumerate(m.at):
                x = m.x.clone()
                x[row] = value[i]
                falls.append(clean - m.logp(x))
            out[name] = torch.stack(falls)
        causal = torch.triu(torch.full((m.T, m.T), float("-inf"), dtype=torch.float64), 1)
        for name, rows in (("cut-text", range(m.at[-1] + 1, m.T)), ("cut-last", [m.T - 1])):
            falls = []
            for row in m.at:
                mask = causal.clone()
                mask[list(rows), row] = float("-inf")
                falls.append(clean - m.logp(m.x, mask))
            out[name] = torch.stack(falls)
        pixel_blur = gaussian(m.pixels[0].permute(1, 2, 0), SIGMA * m.patch).permute(2, 0, 1)
        grey = m.pixels[0].mean((1, 2), keepdim=True).expand_as(m.pixels[0])
        for name, value in (("occlude", grey), ("pixel-blur", pixel_blur)):
            falls = []
            for i in range(n):
                px = m.pixels.clone()
                y, x = i // m.side * m.patch, i % m.side * m.patch
                px[0, :, y:y + m.patch, x:x + m.patch] = value[:, y:y + m.patch, x:x + m.patch]
                falls.append(clean - m.logp(m.vectors(px)))
            out[name] = torch.stack(falls)
    x = m.x.clone().requires_grad_()
    m.logp(x).backward()
    out["attribution-patching"] = ((m.visual - mean) * x.grad[m.at]).sum(1)
    total = torch.zeros(n, d).double()
    for k in range(STEPS):
        x = m.x.clone()
        x[m.at] = mean + (k + 0.5) / STEPS * (m.visual - mean)
        x.requires_grad_()
        m.logp(x).backward()
        total += x.grad[m.at] / STEPS
    out["integrated-gradients"] = ((m.visual - mean) * total).sum(1)
    logits, patterns = m.with_patterns(m.x.clone().requires_grad_())
    logits[-1, m.target].backward()
    R, roll = torch.eye(m.T).double(), torch.eye(m.T).double()
    for p in patterns:
        R = R + (p.grad[0] * p[0]).clamp(min=0).mean(0).detach() @ R
        roll = (0.5 * p[0].mean(0).detach() + 0.5 * torch.eye(m.T).double()) @ roll
    out["relevancy"], out["rollout"] = R[-1, m.at], roll[-1, m.at]
    with torch.no_grad():
        states = [m.x] + list(m.hidden())
        norm = m.find(m.text, m.row["norm"])
        p = torch.stack([torch.softmax(m.hf.lm_head(norm(s[m.at])), -1)[:, m.target] for s in states])
        out["lens"] = p.max(0).values
    return out, clean


def main():
    (FIXTURES / "explain").mkdir(exist_ok=True)
    for name in ("tiny-gqa", "tiny-llava-qwen2"):
        folder = FIXTURES / name
        m = Model(folder, folder / "picture.png")
        out, clean = maps(m)
        out["clean"] = clean.reshape(1)
        out["target"] = np.array([m.target], np.int32)
        path = FIXTURES / "explain" / f"{name}.safetensors"
        save_states(path, {k: v if isinstance(v, np.ndarray) else v.detach() for k, v in out.items()},
                    {"prompt": PROMPT, "picture": f"tests/fixtures/{name}/picture.png", "steps": str(STEPS),
                     "regenerate": "python tools/ref/explain_ref.py",
                     "model_sha256": sha256(folder / "model.safetensors")})
        print(path, path.stat().st_size, "target", m.target, {k: float(abs(torch.as_tensor(v)).max()) for k, v in out.items()})


if __name__ == "__main__":
    main()
