"""Checks lavis_blip2.py and minigpt4.py: the tiny checkpoints are written as .pth files with LAVIS' names, with the tensors
that LAVIS has besides, and converted back; every tensor must come out bit for bit, and the config must mean the same.

    python tools/convert/check_lavis.py
"""
import json
import pathlib
import re
import tempfile

import torch
from safetensors.torch import load_file, save_file

import lavis_blip2
import minigpt4

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures"
BACK = [(r"^vision_model\.post_layernorm\.", "ln_vision."), (r"^qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
        (r"^qformer\.encoder\.layer\.(\d+)\.(\w*attention)\.attention\.", r"Qformer.bert.encoder.layer.\1.\2.self."),
        (r"^qformer\.", "Qformer.bert."), (r"^language_projection\.", "opt_proj."),
        (r"^vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
        (r"^vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
        (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
        (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"visual_encoder.blocks.\1.norm"),
        (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
        (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"visual_encoder.blocks.\1.attn."),
        (r"^vision_model\.encoder\.layers\.", "visual_encoder.blocks.")]


def lavis_names(weights):
    """Tensors by LAVIS' names, those of the decoder left out."""
    out = {}
    for name, t in weights.items():
        if name.startswith("language_model."):
            continue
        for pattern, new in BACK:
            name, n = re.subn(pattern, new, name)
            if n:
                break
        if name.endswith("attn.qkv.bias"):
            q, k, v = t.chunk(3)
            assert not k.any()
            out[name.replace("qkv.bias", "q_bias")], out[name.replace("qkv.bias", "v_bias")] = q.clone(), v.clone()
        else:
            out[name] = t
    for extra in ("Qformer.cls.predictions.bias", "Qformer.bert.embeddings.word_embeddings.weight", "Qformer.bert.embeddings.position_ids",
                  "Qformer.bert.encoder.layer.0.intermediate.dense.weight", "Qformer.bert.encoder.layer.0.output.LayerNorm.bias"):
        out[extra] = torch.zeros(3, 3)
    return out


def check(name, folder, head):
    here = FIXTURES / name
    want, config = load_file(str(here / "model.safetensors")), json.loads((here / "config.json").read_text())
    layers = config["vision_config"]["num_hidden_layers"]
    named, tmp = lavis_names(want), pathlib.Path(folder)
    vit = {n.removeprefix("visual_encoder."): t for n, t in named.items() if n.startswith("visual_encoder.")}
    rest = {n: t for n, t in named.items() if not n.startswith("visual_encoder.")}
    for n in [n for n in vit if n.startswith("blocks.0.")]:  # the published file has one block more than is run
        vit[n.replace("blocks.0.", f"blocks.{layers}.")] = torch.ones_like(vit[n])
    vit["norm.weight"] = torch.zeros(3)
    lm = tmp / "lm"
    lm.mkdir()
    text = {n.removeprefix("language_model."): t.contiguous() for n, t in want.items() if n.startswith("language_model.")}
    save_file(text, str(lm / "model.safetensors"))
    (lm / "config.json").write_text(json.dumps(config["text_config"]))
    for f in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (lm / f).write_bytes((here / f).read_bytes())
    proj = {n: rest.pop(n) for n in list(rest) if n.startswith("llama_proj.")}
    torch.save({"model": rest}, tmp / "lavis.pth")
    torch.save(vit, tmp / "vit.pth")
    size = json.loads((here / "preprocessor_config.json").read_text())["size"]["height"]
    common = ["--lavis", f"{tmp}/lavis.pth", "--vit", f"{tmp}/vit.pth", "--layers", str(layers), "--vision-head", "8",
              "--qformer-head", str(head), "--image-size", str(size), "-o", f"{tmp}/out"]
    if proj:
        torch.save({"model": {**proj, "unused": torch.zeros(2)}}, tmp / "proj.pth")
        minigpt4.main(common + ["--proj", f"{tmp}/proj.pth", "--vicuna", str(lm)])
    else:
        lavis_blip2.main(common + ["--opt", str(lm)])
    got, back = load_file(f"{tmp}/out/model.safetensors"), json.loads((tmp / "out" / "config.json").read_text())
    assert set(got) == set(want), sorted(set(got) ^ set(want))
    for n, t in want.items():
        assert got[n].dtype == t.dtype and torch.equal(got[n], t), n
    for part in ("vision_config", "qformer_config", "text_config"):
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size",
                    "cross_attention_frequency", "ffn_dim", "vocab_size"):
            if key in config[part] and (part, key) != ("qformer_config", "vocab_size"):
                assert back[part][key] == config[part][key], (part, key)
    assert back["model_type"] == config["model_type"] and back["num_query_tokens"] == config["num_query_tokens"]
    print(f"{name}: {len(got)} tensors come back bit for bit")


if __name__ == "__main__":
    for fixture, head in (("tiny-blip2", 7), ("tiny-blip2-old", 8), ("tiny-minigpt4", 7)):
        with tempfile.TemporaryDirectory() as d:
            check(fixture, d, head)
