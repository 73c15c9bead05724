"""Causal maps of the demo model on two demo questions: python tools/ref/make_demo_maps.py

Writes tests/fixtures/demo-maps/*.safetensors. The metadata holds the hash of the model that they belong to: run this
again whenever models/demo/model.safetensors changes (about two minutes on one core).
"""
import sys
import time

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

import capture_ref
import trace_ref
from common import FIXTURES, ROOT, preprocess, read_json, save_states, sha256
from tiny_maps import check_cells

# file, picture, donor, prompt, words that may replace the constraint (the first that fit token for token are taken)
QUESTIONS = [
    ("seen", "peru.png", "japan.png", "USER: <image>\nWhat is the capital of [this country]? ASSISTANT:",
     ["Brazil", "Norway", "Kenya", "Canada", "Japan"]),
    ("named", "japan.png", "peru.png", "USER: <image>\nWhat is the capital of [Peru]? ASSISTANT:",
     ["Brazil", "Norway", "Kenya", "Canada", "Chad", "Cuba", "Mali"]),
]
SAMPLES = 2
CELLS_CHECKED = 12


def fitting(item, names):
    for n in names:
        try:
            return n, item.replaced(n)
        except ValueError:
            pass
    raise ValueError(f"none of {names} fits '{item.words}'")


def main():
    demo, folder = ROOT / "models" / "demo", FIXTURES / "demo-maps"
    folder.mkdir(parents=True, exist_ok=True)
    everyone = [n["name"] for n in read_json(demo / "entities.json")["kinds"]["country"]["names"]]
    model, cfg = capture_ref.load(demo), read_json(demo / "preprocessor_config.json")
    tok, rig = Tokenizer.from_file(str(demo / "tokenizer.json")), trace_ref.Rig(model)
    weight = model.get_input_embeddings().weight.detach().double()
    std = 3 * float(weight.std())
    for n, (name, picture, donor, prompt, names) in enumerate(QUESTIONS):
        t = time.time()
        pixels, other = (preprocess(Image.open(demo / "samples" / f), cfg) for f in (picture, donor))
        item = trace_ref.make_item(model, tok, prompt)
        word, ids = fitting(item, names + [x for x in everyone if x not in ("Peru", "Japan")])
        noise = np.random.default_rng(50 + n).normal(0, std, (SAMPLES, len(item.span), weight.shape[1])).astype(np.float32)
        out = trace_ref.trace(rig, item, pixels, ids, noise, other, batch=16)
        trace_ref.check(out)
        worst = check_cells(demo, item, pixels, out, CELLS_CHECKED, 8)
        save_states(folder / f"{name}.safetensors", out, {
            "model_sha256": sha256(demo / "model.safetensors"), "tokenizer_sha256": sha256(demo / "tokenizer.json"),
            "picture": f"models/demo/samples/{picture}", "donor": f"models/demo/samples/{donor}",
            "picture_sha256": sha256(demo / "samples" / picture), "donor_sha256": sha256(demo / "samples" / donor),
            "prompt": item.prompt, "question": prompt.split("\n")[1].replace(" ASSISTANT:", ""), "constraint": item.words,
            "replace": word, "noise_std": std, "regenerate": "python tools/ref/make_demo_maps.py"})
        print(f"{name}: {len(item.ids)} rows, span {item.span}, answer {tok.decode([out['target'][0]])!r}, p clean "
              f"{float(out['p_clean'][0]):.4f}, '{word}' {float(out['p_corr'][0]):.4f}, noise "
              f"{float(out['p_corr.noise'][0]):.4f}, donor {float(out['p_donor'][0]):.4f}; {CELLS_CHECKED} cells in "
              f"float64: {worst:.1e}; {time.time() - t:.0f} s")
        for site in trace_ref.SITES:
            m = out[f"sub.{site}.w1"]
            l, j = np.unravel_index(m.argmax(), m.shape)
            print(f"  {site}: best {m[l, j]:.4f} at layer {l}, row {item.positions[j]} "
                  f"{tok.decode([item.ids[item.positions[j]]], skip_special_tokens=False)!r}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
