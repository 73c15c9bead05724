"""Whole causal maps of tests/fixtures/tiny-gqa: maps.safetensors beside it, checked against llava_plain.py in float64; and
short ones (substitution, single layers) of one checkpoint of every other family.

    python tools/ref/tiny_maps.py [name ...]
"""
import re
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

import blip2_ref
import capture_ref
import make_tiny_blip2
import minigpt4_ref
import trace_ref
from common import FIXTURES, IMAGE, make_picture, preprocess, read_json, save_states, sha256
from llava_plain import Plain

PROMPT = "USER: <image>\nWhat is the capital of [this country]? ASSISTANT:"
REPLACE = "the flag"


def check_cells(folder, item, pixels, out, count, seed):
    """Random cells of the substitution maps again, by another program in float64."""
    plain, rng = Plain(folder, torch.float64), np.random.default_rng(seed)
    clean = plain.run(item.ids, pixels)
    ids = list(item.ids)
    for r, t in zip(item.span, out["replacement_ids"]):
        ids[r] = int(t)
    layers, worst = plain.text["num_hidden_layers"], 0.0
    where = {"mlp": "mlp_out", "attn": "attn_out", "hidden": "resid_post"}
    names = [k for k in out if k.startswith("sub.")]
    for _ in range(count):
        name = names[rng.integers(len(names))]
        _, site, win = name.split(".", 2)
        l, j = rng.integers(layers), rng.integers(len(item.positions))
        lo, hi = out["window." + win][l]
        row = item.positions[j]
        sites = {f"decoder.{k}.{where[site]}" for k in range(lo, hi + 1)}

        def edit(name, t):
            if name in sites:
                t[row] = clean[name][row]

        p = plain.run(ids, pixels, edit=edit)["logits"][-1].softmax(-1)[int(out["target"][0])]
        worst = max(worst, abs(float(p) - out[name][l, j]))
    assert worst < 2e-6, worst
    return worst


def main():
    folder = FIXTURES / "tiny-gqa"
    make_picture(50, 41, 9).save(folder / "donor.png")
    model = capture_ref.load(folder)
    cfg = read_json(folder / "preprocessor_config.json")
    pixels, donor = (preprocess(Image.open(folder / f), cfg) for f in ("picture.png", "donor.png"))
    item = trace_ref.make_item(model, Tokenizer.from_file(str(folder / "tokenizer.json")), PROMPT)
    std = 3 * float(model.get_input_embeddings().weight.detach().double().std())
    noise = np.random.default_rng(5).normal(0, std, (3, len(item.span), 32)).astype(np.float32)
    out = trace_ref.trace(trace_ref.Rig(model), item, pixels, item.replaced(REPLACE), noise, donor, noising=True)
    trace_ref.check(out)
    worst = check_cells(folder, item, pixels, out, 60, 3)
    save_states(folder / "maps.safetensors", out, {
        "prompt": item.prompt, "constraint": item.words, "replace": REPLACE, "picture": "picture.png",
        "donor": "donor.png", "noise_std": std, "states_sha256": sha256(folder / "states.safetensors")})
    print(f"rows {item.positions[0]}..{item.positions[-1]}, span {item.span}, p clean {float(out['p_clean'][0]):.4f}, "
          f"corrupted {float(out['p_corr'][0]):.4f}, noise {float(out['p_corr.noise'][0]):.4f}, "
          f"donor {float(out['p_donor'][0]):.4f}; 60 cells in float64: {worst:.1e}")
    for k, m in out.items():
        if m is not None and np.ndim(m) == 2 and "." in k and not k.startswith("window"):
            print(f"  {k}: {np.min(m):.4f} .. {np.max(m):.4f}")


def rig_of(model):
    """The hooked decoder, and what gives the rows that enter it."""
    text, embed = model, trace_ref.embed
    if hasattr(model, "qformer"):
        text, embed = model.language_model, lambda _, ids, pixels: blip2_ref.embed(model, ids, pixels)
    kind = make_tiny_blip2.Rig if capture_ref.decoder(text).config.model_type == "opt" else trace_ref.Rig
    return kind(text), embed


class Split(trace_ref.Item):
    """The text before and behind the picture is encoded apart (liuhaotian), or in the three pieces of MiniGPT-4."""

    def __init__(self, tok, prompt, rows, image_id, pieces, special):
        self.pieces, self.special = pieces, special
        super().__init__(tok, prompt, rows, image_id)

    def expand(self, text):
        ids, rows, offsets, at = [], [], [], 0
        for i, piece in enumerate(re.split(self.pieces, text)):
            if piece == "<image>":
                rows.append(len(ids))
                ids += [self.image_id] * self.n
                offsets.append((at, at + len(piece)))
            else:
                enc = self.tok.encode(piece, add_special_tokens=self.special and i == 0)
                rows += range(len(ids), len(ids) + len(enc.ids))
                ids += enc.ids
                offsets += [(a + at, b + at) if b > a else (0, 0) for a, b in enc.offsets]
            at += len(piece)
        return ids, rows, offsets


def load_liuhaotian(folder):
    """transformers' LLaVA in the weights of the two checkpoints."""
    import tiny_families
    model = tiny_families.build(tiny_families.SPECS[folder.name]).float()
    w = {**load_file(str(folder / "model.safetensors")), **load_file(str(folder / "clip-tiny" / "model.safetensors"))}
    mine = {}
    for name in model.state_dict():
        new = name
        for a, b in ((r"^model\.language_model\.", "model."), (r"^model\.vision_tower\.", "vision_model."),
                     (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
                     (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2.")):
            new = re.sub(a, b, new)
        mine[name] = w[new]
    model.load_state_dict(mine, strict=True)
    for part in model.modules():
        if getattr(part, "config", None) is not None:
            part.config._attn_implementation = "eager"
    return model.eval()


def short(name, prompt, replace):
    import tiny_families
    folder, spec = FIXTURES / name, tiny_families.SPECS.get(name, {})
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    extra, pixels, rows, image_id = {}, None, 1, IMAGE
    if name == "tiny-minigpt4":
        model = blip2_ref.load(folder)
        rows, image_id = model.config["num_query_tokens"], minigpt4_ref.PICTURE
    else:
        model = load_liuhaotian(folder) if spec.get("liuhaotian") else capture_ref.load(folder)
        rows = tiny_families.image_rows(model.config) if "<image>" in prompt else 1
    if "<image>" in prompt:
        cfg = tiny_families.preprocessor(spec) if "tower" in spec else read_json(folder / "preprocessor_config.json")
        if "bunny" in spec or spec.get("liuhaotian"):
            cfg["do_pad"] = True
        extra, pixels = {"picture": "picture.png"}, preprocess(Image.open(folder / "picture.png"), cfg)
    if name == "tiny-minigpt4":
        item = Split(tok, prompt, rows, image_id, r"(<image>|(?<=<image></Img> ))", False)
    elif spec.get("liuhaotian"):
        item = Split(tok, prompt, rows, image_id, r"(<image>)", True)
    else:
        item = trace_ref.Item(tok, prompt, rows)
    rig, embed = rig_of(model)
    plain, trace_ref.embed = trace_ref.embed, embed
    out = trace_ref.trace(rig, item, pixels, item.replaced(replace), windows=trace_ref.WINDOWS[:1])
    trace_ref.embed = plain
    trace_ref.check(out)
    save_states(folder / "maps.safetensors", out, {"prompt": item.prompt, "constraint": item.words, "replace": replace,
                                                   "states_sha256": sha256(folder / "states.safetensors"), **extra})
    print(f"{name}: p clean {float(out['p_clean'][0]):.4f}, corrupted {float(out['p_corr'][0]):.4f}, "
          f"mlp {out['sub.mlp.w1'].min():.4f} .. {out['sub.mlp.w1'].max():.4f}")


TEXT = "What is the capital of [the flag]? ASSISTANT:"
SEEN = "<image>\nWhat is the capital of [the flag]?"
WRAPPED = "###Human: <Img><image></Img> What is the capital of [the flag]?"
FAMILIES = {"tiny-phi": TEXT, "tiny-gpt2": TEXT, "tiny-opt": TEXT.removesuffix(" ASSISTANT:"), "tiny-mistral": TEXT, "tiny-qwen2": TEXT, "tiny-llama": TEXT,
            "tiny-bunny": SEEN, "tiny-llava-mistral": SEEN, "tiny-llava-qwen2": SEEN, "tiny-liuhaotian": SEEN,
            "tiny-minigpt4": WRAPPED}

if __name__ == "__main__":
    if not sys.argv[1:]:
        main()
    for name in sys.argv[1:] or FAMILIES:
        short(name, FAMILIES[name], "that circle")
