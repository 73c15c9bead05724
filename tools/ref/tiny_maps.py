"""Whole causal maps of tests/fixtures/tiny-gqa: maps.safetensors beside it, checked against llava_plain.py in float64; and
short ones (substitution, single layers) of tiny-phi and tiny-bunny, whose blocks run attention and MLP side by side, and of
tiny-gpt2, whose positions are added to the token embeddings."""
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

import capture_ref
import trace_ref
from common import FIXTURES, make_picture, preprocess, read_json, save_states, sha256
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


def short(name, prompt, replace):
    folder = FIXTURES / name
    model, tok = capture_ref.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    extra, pixels, rows = {}, None, 1
    if "<image>" in prompt:
        import tiny_families
        cfg = {**tiny_families.preprocessor(tiny_families.SPECS[name]), "do_pad": True}
        extra = {"picture": "picture.png"}
        pixels, rows = preprocess(Image.open(folder / "picture.png"), cfg), tiny_families.image_rows(model.config)
    item = trace_ref.Item(tok, prompt, rows)
    windows = trace_ref.WINDOWS[:1]
    out = trace_ref.trace(trace_ref.Rig(model), item, pixels, item.replaced(replace), windows=windows)
    trace_ref.check(out)
    save_states(folder / "maps.safetensors", out, {"prompt": item.prompt, "constraint": item.words, "replace": replace,
                                                   "states_sha256": sha256(folder / "states.safetensors"), **extra})
    print(f"{name}: p clean {float(out['p_clean'][0]):.4f}, corrupted {float(out['p_corr'][0]):.4f}, "
          f"mlp {out['sub.mlp.w1'].min():.4f} .. {out['sub.mlp.w1'].max():.4f}")


if __name__ == "__main__":
    main()
    short("tiny-phi", "What is the capital of [the flag]? ASSISTANT:", "that circle")
    short("tiny-gpt2", "What is the capital of [the flag]? ASSISTANT:", "that circle")
    short("tiny-bunny", "<image>\nWhat is the capital of [the flag]?", "that circle")
