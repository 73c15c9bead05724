"""MiniGPT-4's parts as they are published -> the folder that docs/models/minigpt4.md describes. For development; needs torch.

    python tools/convert/minigpt4.py --lavis blip2_pretrained_flant5xxl.pth --vit eva_vit_g.pth \\
        --proj pretrained_minigpt4_7b.pth --vicuna VICUNA_FOLDER -o OUT [--image-size 364]

Not tried on the real files: it was tested on files with their names made from the tiny checkpoint (check_lavis.py). The
published numbers need Vicuna v0 (v1.5 answers wrongly), as a folder with tokenizer.json or tokenizer.model.
"""
import argparse

import torch

import lavis


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--lavis", required=True, help="Qformer.*, query_tokens, ln_vision.* of BLIP-2 FlanT5-XXL")
    p.add_argument("--vit", help="eva_vit_g.pth")
    p.add_argument("--proj", required=True, help="llama_proj.*")
    p.add_argument("--vicuna", required=True, help="folder of the Vicuna decoder")
    p.add_argument("--layers", type=int, default=39, help="blocks of the tower that are used [39]")
    p.add_argument("--vision-head", type=int, default=88, help="width of the tower's heads [88]")
    p.add_argument("--qformer-head", type=int, default=64, help="width of the Q-Former's heads [64]")
    p.add_argument("--image-size", type=int, default=0, help="of pictures; the tower's own [224]")
    p.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    p.add_argument("-o", "--output", required=True)
    a = p.parse_args(argv)
    w, unknown = lavis.parts(a.lavis, a.vit, a.layers, {"t5_proj": None, "opt_proj": None, "llama_proj": "llama_proj"})
    proj = {n: t for n, t in lavis.read_pth(a.proj).items() if n.startswith("llama_proj.")}
    if not proj:
        raise SystemExit(f"{a.proj} holds no llama_proj.*")
    w.update(proj)
    text, config = lavis.language_model(a.vicuna)
    w.update({"language_model." + n: t for n, t in text.items() if not n.endswith("rotary_emb.inv_freq")})
    vision = lavis.vision_config(w, a.vision_head)
    lavis.write(a.output, w, {
        "model_type": "minigpt4", "num_query_tokens": w["query_tokens"].shape[1], "vision_config": vision,
        "qformer_config": lavis.qformer_config(w, a.qformer_head), "text_config": {**config, "model_type": "llama"}},
        a.image_size or vision["image_size"], a.vicuna, getattr(torch, a.dtype))
    lavis.report(unknown)


if __name__ == "__main__":
    main()
