"""Causal maps of a transformers LLaVA or Llama model by forward hooks: one full forward pass per cell.

    python tools/ref/trace_ref.py MODEL --image FILE --prompt "USER: <image>\\n... of [this country]? ASSISTANT:" \\
        --replace "Peru land" -o maps.safetensors        (the brackets mark the constraint; --replace: same token count)
    ... --noise-samples 3 --noise-std 1.5 --seed 1      noise instead of, or besides, the replacement

A cell (site, layer, position, window) is a run on the corrupted input in which the output of the component (attn: after
o_proj, mlp: after down_proj, both before they are added to the residual stream; hidden: the block's output) at that
position is overwritten, in each layer of the window, with the clean run's value of the same layer. The number kept is
the probability of the clean run's first answer token at the last position, softmax in float64 over float32 logits;
with noise, the mean over the samples.
"""
import argparse
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

import capture_ref
from common import IMAGE, preprocess, read_json, save_states

SITES = ("mlp", "attn", "hidden")


def window(layer, width, style, layers):
    """[lo, hi] of a window around a layer, clipped; width 1 is the layer alone in both styles."""
    if width == 1:
        return layer, layer
    if style == "rome":  # width layers: [l - floor(w/2), l + ceil(w/2))
        return max(0, layer - width // 2), min(layers, layer + (width + 1) // 2) - 1
    return max(0, layer - width), min(layers - 1, layer + width)  # released: 2 width + 1 layers


class Rig:
    """Hooks on every decoder layer: they record component outputs, or overwrite rows of them."""

    def __init__(self, model):
        self.model, self.record, self.edits = model, None, None
        row, layers, find = capture_ref.parts(model)
        for i, block in enumerate(layers):
            for site, module in (("attn", find(block, row["o"])), ("mlp", find(block, row["fc2"])), ("hidden", block)):
                module.register_forward_hook(self.hook(site, i))

    def hook(self, site, layer):
        def fire(module, args, y):
            t = y[0] if isinstance(y, tuple) else y
            if self.record is not None:
                self.record[site, layer] = t.detach().clone()
            for row, position, value in (self.edits or {}).get((site, layer), ()):
                t[row, position] = value
            return (t, *y[1:]) if isinstance(y, tuple) else t
        return fire

    @torch.no_grad()
    def logits(self, embeds, edits=None, record=None):
        """[n, T, d] -> last row's logits [n, vocab]; edits: {(site, layer): [(batch row, position, value), ...]}."""
        self.edits, self.record = edits, record
        try:
            return self.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[:, -1]
        finally:
            self.edits = self.record = None


def probability(logits, target):
    return logits.double().softmax(-1)[..., target]


def maps(rig, base, source, positions, target, windows, sites=SITES, batch=1):
    """base [samples, T, d]: the runs that are patched; source: records of the run that values come from.
    windows: [(name, width, style)]. -> {"mlp.w1": [layers, positions] f64, ...}"""
    layers = len(capture_ref.parts(rig.model)[1])
    n = base.shape[0]
    out = {}
    for site in sites:
        for name, width, style in windows if site != "hidden" else windows[:1]:
            cells = [(l, j) for l in range(layers) for j in range(len(positions))]
            m = np.zeros((layers, len(positions)))
            for at in range(0, len(cells), batch):
                some = cells[at:at + batch]
                edits = {}
                for c, (l, j) in enumerate(some):
                    lo, hi = window(l, width, style, layers)
                    for k in range(lo, hi + 1):
                        value = source[site, k][0, positions[j]]
                        edits.setdefault((site, k), []).extend((c * n + s, positions[j], value) for s in range(n))
                p = probability(rig.logits(base.repeat(len(some), 1, 1), edits), target)
                for c, (l, j) in enumerate(some):
                    m[l, j] = float(p[c * n:(c + 1) * n].mean())
            out[f"{site}.{name}"] = m
    return out


def embed(model, ids, pixels=None):
    """Expanded ids -> merged input embeddings [1, T, d]."""
    ids = torch.as_tensor(ids)[None].long()
    with torch.no_grad():
        x = model.get_input_embeddings()(ids)
        if pixels is not None:
            seen = model.get_image_features(pixel_values=torch.as_tensor(pixels)[None]).pooler_output
            x = x.masked_scatter((ids == model.config.image_token_id)[..., None], torch.cat(list(seen)))
    return x


class Item:
    """A prompt with one [bracketed] constraint, as ids in expanded positions."""

    def __init__(self, tok, prompt, image_rows, image_id=IMAGE):
        self.tok, self.n, self.image_id = tok, image_rows, image_id
        a, b = prompt.index("["), prompt.index("]")
        self.prompt = prompt[:a] + prompt[a + 1:b] + prompt[b + 1:]
        self.ids, rows, offsets = self.expand(self.prompt)
        text = self.prompt
        self.span = [r for r, (s, e) in zip(rows, offsets) if text[s:e].strip() and s < b - 1 and e > a
                     and s + len(text[s:e]) - len(text[s:e].lstrip()) < b - 1]
        self.head, self.tail, self.words = prompt[:a], prompt[b + 1:], prompt[a + 1:b]
        image = [i for i, t in enumerate(self.ids) if t == image_id]
        self.positions = list(range(image[-1] if image else 0, len(self.ids)))

    def expand(self, text):
        enc = self.tok.encode(text)
        ids, rows = [], []
        for t in enc.ids:
            rows.append(len(ids))
            ids += [t] * (self.n if t == self.image_id else 1)
        return ids, rows, enc.offsets

    def replaced(self, words):
        """Ids of the span when other words stand there; the rest of the prompt must keep its tokens."""
        ids, _, _ = self.expand(self.head + words + self.tail)
        if len(ids) != len(self.ids):
            raise ValueError(f"'{words}' has another token count than '{self.words}'")
        change = [i for i in range(len(ids)) if ids[i] != self.ids[i]]
        if change != self.span:
            raise ValueError(f"'{words}' changes rows {change}, not the constraint's {self.span}")
        return [ids[i] for i in self.span]


WINDOWS = [("w1", 1, "rome"), ("w3.rome", 3, "rome"), ("w3.released", 3, "released")]


def trace(rig, item, pixels, replacement=None, noise=None, donor_pixels=None, noising=False, windows=WINDOWS, batch=1,
          target=None):
    """-> tensors for save_states, with the corrupted input, both probabilities and every map."""
    model = rig.model
    clean = embed(model, item.ids, pixels)
    record = {}
    logits = rig.logits(clean, record=record)
    target = int(logits[0].argmax()) if target is None else target
    out = {"input_ids": item.ids, "positions": item.positions, "span": item.span, "target": [target],
           "p_clean": probability(logits, target)}
    layers = len(capture_ref.parts(model)[1])
    for name, width, style in windows:
        lo_hi = [window(l, width, style, layers) for l in range(layers)]
        out[f"window.{name}"] = np.array(lo_hi)
    if replacement is not None:
        ids = list(item.ids)
        for r, t in zip(item.span, replacement):
            ids[r] = t
        x, corrupt = embed(model, ids, pixels), {}
        out.update({"replacement_ids": replacement, "p_corr": probability(rig.logits(x, record=corrupt), target)})
        for k, m in maps(rig, x, record, item.positions, target, windows, batch=batch).items():
            out["sub." + k] = m
        if noising:  # the other direction: the clean run is patched with the corrupted run's values
            for k, m in maps(rig, clean, corrupt, item.positions, target, windows[:1], batch=batch).items():
                out["noising." + k] = m
        if donor_pixels is not None:
            other = {}
            out["p_donor"] = probability(rig.logits(embed(model, item.ids, donor_pixels), record=other), target)
            for k, m in maps(rig, x, other, item.positions, target, windows[:1], batch=batch).items():
                out["donor." + k] = m
    if noise is not None:
        x = clean.repeat(noise.shape[0], 1, 1)
        x[:, item.span] += torch.as_tensor(noise)
        p = probability(rig.logits(x), target)
        out.update({"noise": noise, "p_corr.noise": p.mean()[None], "p_corr.noise.samples": p})
        for k, m in maps(rig, x, record, item.positions, target, windows, batch=batch).items():
            out["noise." + k] = m
    return out


def check(out):
    """What must hold for any causal decoder whose last token is not in the span."""
    positions, span = list(np.asarray(out["positions"])), list(np.asarray(out["span"]))
    assert positions[-1] not in span
    before = [j for j, p in enumerate(positions) if p < span[0]]
    clean = float(out["p_clean"][0])
    for kind, corr in (("sub", out.get("p_corr")), ("noise", out.get("p_corr.noise"))):
        if corr is None:
            continue
        corr = float(corr[0])
        for name, m in out.items():
            if not name.startswith(kind + "."):
                continue
            assert np.abs(m[:, before] - corr).max(initial=0) < 2e-6, name      # nothing to restore there
            if name.endswith("w1"):
                assert np.abs(m[-1, :-1] - corr).max() < 2e-6, name             # last layer: only the last row counts
        assert abs(out[kind + ".hidden.w1"][-1, -1] - clean) < 2e-6             # the clean logits themselves
        if max(np.abs(out[f"{kind}.{site}.w1"] - corr).max() for site in SITES) < 1e-3:
            print("warning: nothing in this map reaches 0.001; it proves little", file=sys.stderr)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=pathlib.Path)
    ap.add_argument("--image", type=pathlib.Path)
    ap.add_argument("--donor", type=pathlib.Path)
    ap.add_argument("--prompt", required=True)
    ap.add_argument("--replace")
    ap.add_argument("--noise-samples", type=int, default=0)
    ap.add_argument("--noise-std", type=float, default=1.0)
    ap.add_argument("--noising", action="store_true")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--batch", type=int, default=1)
    ap.add_argument("-o", "--out", required=True)
    args = ap.parse_args()
    model = capture_ref.load(args.model)
    pixels = donor = None
    if args.image:
        cfg = read_json(args.model / "preprocessor_config.json")
        pixels = preprocess(Image.open(args.image), cfg)
        donor = preprocess(Image.open(args.donor), cfg) if args.donor else None
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    item = make_item(model, tok, args.prompt.replace("\\n", "\n"))
    replacement = item.replaced(args.replace) if args.replace else None
    noise = None
    if args.noise_samples:
        d = capture_ref.decoder(model).config.hidden_size
        shape = (args.noise_samples, len(item.span), d)
        noise = (np.random.default_rng(args.seed).normal(0, args.noise_std, shape)).astype(np.float32)
    out = trace(Rig(model), item, pixels, replacement, noise, donor, args.noising, batch=args.batch)
    check(out)
    save_states(args.out, out, {"prompt": item.prompt, "constraint": item.words, "replace": args.replace or ""})
    for k, v in out.items():
        if k.startswith("p_"):
            print(k, np.asarray(v).ravel())


def make_item(model, tok, prompt):
    if not hasattr(model.config, "vision_config"):
        return Item(tok, prompt, 1)
    from tiny_models import image_rows
    return Item(tok, prompt, image_rows(model.config), model.config.image_token_id)


if __name__ == "__main__":
    sys.exit(main())
