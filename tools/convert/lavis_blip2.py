"""BLIP-2's parts as LAVIS publishes them -> one folder in Hugging Face layout. For development; needs torch.

    python tools/convert/lavis_blip2.py --lavis blip2_pretrained_opt2.7b.pth --vit eva_vit_g.pth --opt OPT_FOLDER -o OUT \\
        [--image-size 364]

Not tried on the real files: it was tested on files with LAVIS' names made from the tiny checkpoint (check_lavis.py). The
names follow LAVIS' code and transformers' conversion script. --opt: facebook/opt-2.7b, with tokenizer.json. Pictures of
another size than the tower's own get interpolated position embeddings (MMEdit: 364). The config has
`post_layernorm_eps` 1e-5, which LAVIS uses for ln_vision; transformers ignores the key and uses the blocks' 1e-6. No
picture token is added: picture rows come before the text in any case.
"""
import argparse

import torch

import lavis


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--lavis", required=True, help="Qformer.*, query_tokens, ln_vision.*, opt_proj.* (and visual_encoder.*)")
    p.add_argument("--vit", help="eva_vit_g.pth, where the first file has no visual_encoder.*")
    p.add_argument("--opt", required=True, help="folder of the OPT decoder")
    p.add_argument("--layers", type=int, default=39, help="blocks of the tower that are used [39]")
    p.add_argument("--vision-head", type=int, default=88, help="width of the tower's heads [88]")
    p.add_argument("--qformer-head", type=int, default=64, help="width of the Q-Former's heads [64]")
    p.add_argument("--image-size", type=int, default=0, help="of pictures; the tower's own [224]")
    p.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    p.add_argument("-o", "--output", required=True)
    a = p.parse_args(argv)
    w, unknown = lavis.parts(a.lavis, a.vit, a.layers, {"opt_proj": "language_projection", "opt_model": None})
    text, config = lavis.language_model(a.opt)
    for name, t in text.items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings", True):
            continue
        name = name if name.startswith(("model.", "lm_head.")) else "model." + name
        w["language_model." + name] = t
    vision = lavis.vision_config(w, a.vision_head)
    lavis.write(a.output, w, {
        "architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2", "use_decoder_only_language_model": True,
        "num_query_tokens": w["query_tokens"].shape[1], "vision_config": vision,
        "qformer_config": lavis.qformer_config(w, a.qformer_head), "text_config": {**config, "model_type": "opt"},
        "tie_word_embeddings": config.get("tie_word_embeddings", True)},
        a.image_size or vision["image_size"], a.opt, getattr(torch, a.dtype))
    lavis.report(unknown)


if __name__ == "__main__":
    main()
