"""What the converters of LAVIS' BLIP-2 parts share: reading .pth files, names, sizes, config files."""
import json
import pathlib
import re
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import save_file

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]

# LAVIS' name -> ours (transformers'); the first rule that matches is taken. None: not used with query rows alone.
TOWER = [(r"^cls_token$", "embeddings.class_embedding"), (r"^pos_embed$", "embeddings.position_embedding"),
         (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
         (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
         (r"^blocks\.(\d+)\.attn\.qkv\.weight$", r"encoder.layers.\1.self_attn.qkv.weight"),
         (r"^blocks\.(\d+)\.attn\.([qv])_bias$", r"encoder.layers.\1.self_attn.\2_bias"),
         (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
         (r"^blocks\.(\d+)\.mlp\.(fc[12])\.", r"encoder.layers.\1.mlp.\2."),
         (r"^(norm|fc_norm|head)\.", None)]
QFORMER = [(r"^query_tokens$", "query_tokens"), (r"^ln_vision\.", "vision_model.post_layernorm."),
           (r"^Qformer\.cls\.", None), (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
           (r"^Qformer\.bert\.embeddings\.", None), (r"^Qformer\.bert\.pooler\.", None),
           (r"^Qformer\.bert\.encoder\.layer\.(\d+)\.(intermediate|output)\.", None),
           (r"^Qformer\.bert\.encoder\.layer\.(\d+)\.((?:cross)?attention)\.self\.", r"qformer.encoder.layer.\1.\2.attention."),
           (r"^Qformer\.bert\.encoder\.layer\.(\d+)\.((?:cross)?attention\.output|intermediate_query|output_query)\.",
            r"qformer.encoder.layer.\1.\2.")]


def read_pth(path):
    """Tensors of a .pth (plain, or under "model"), without running any code that it holds."""
    w = torch.load(path, map_location="cpu", weights_only=True)
    return w.get("model", w)


def rename(weights, rules, prefix=""):
    """-> (renamed tensors, names that no rule knows)"""
    out, unknown = {}, []
    for name, t in weights.items():
        for pattern, new in rules:
            if re.match(pattern, name):
                if new is not None:
                    out[prefix + re.sub(pattern, new, name)] = t
                break
        else:
            unknown.append(name)
    return out, unknown


def tower(weights, layers=None):
    """The EVA tower's tensors by transformers' names: q and v biases joined, with zeros for the keys. LAVIS runs one block
    less than eva_vit_g.pth holds: `layers` are kept."""
    out, unknown = rename(weights, TOWER, "vision_model.")
    for name in [n for n in out if n.endswith(".q_bias")]:
        q, v = out.pop(name), out.pop(name.replace("q_bias", "v_bias"))
        out[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(v), v])
    if layers is not None:
        out = {n: t for n, t in out.items() if not (m := re.search(r"encoder\.layers\.(\d+)\.", n)) or int(m[1]) < layers}
    return out, unknown


def parts(file, vit, layers, projection):
    """Tower, Q-Former and projection (LAVIS' name -> ours) of one LAVIS file and, where that has none, the tower's own."""
    w = read_pth(file)
    inside = {n.removeprefix("visual_encoder."): t for n, t in w.items() if n.startswith("visual_encoder.")}
    rest = {n: t for n, t in w.items() if not n.startswith("visual_encoder.")}
    if not inside and not vit:
        raise SystemExit(f"{file} holds no visual_encoder.*: name the tower's file (eva_vit_g.pth) with --vit")
    seen, unknown = tower(inside or read_pth(vit), layers)
    rules = QFORMER + [(r"^%s\." % a, b and b + ".") for a, b in projection.items()]
    other, more = rename(rest, rules)
    return {**seen, **other}, unknown + more


def count(weights, pattern):
    return 1 + max(int(m[1]) for n in weights if (m := re.match(pattern, n)))


def vision_config(w, head_width):
    d, _, patch, _ = w["vision_model.embeddings.patch_embedding.weight"].shape
    side = round((w["vision_model.embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    return {"model_type": "blip_2_vision_model", "hidden_size": d, "hidden_act": "gelu", "image_size": side * patch,
            "patch_size": patch, "intermediate_size": w["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": count(w, r"vision_model\.encoder\.layers\.(\d+)\."), "num_attention_heads": d // head_width,
            "layer_norm_eps": 1e-6, "post_layernorm_eps": 1e-5, "qkv_bias": True}


def qformer_config(w, head_width):
    layers = count(w, r"qformer\.encoder\.layer\.(\d+)\.")
    cross = [i for i in range(layers) if f"qformer.encoder.layer.{i}.crossattention.attention.query.weight" in w]
    every = cross[1] if len(cross) > 1 else layers
    if cross != list(range(0, layers, every)):
        raise SystemExit(f"cross-attention in layers {cross} is not every n-th from 0")
    d = w["query_tokens"].shape[2]
    return {"model_type": "blip_2_qformer", "hidden_size": d, "hidden_act": "gelu", "num_hidden_layers": layers,
            "num_attention_heads": d // head_width, "cross_attention_frequency": every, "layer_norm_eps": 1e-12,
            "intermediate_size": w["qformer.encoder.layer.0.intermediate_query.dense.weight"].shape[0],
            "encoder_hidden_size": w["qformer.encoder.layer.0.crossattention.attention.key.weight"].shape[1]}


def language_model(folder):
    """Tensors and config of a Hugging Face folder; .bin files are read without running code."""
    folder, w = pathlib.Path(folder), {}
    for f in sorted(folder.glob("*.safetensors")):
        with safe_open(str(f), "pt") as s:
            w.update({n: s.get_tensor(n) for n in s.keys()})
    if not w:
        for f in sorted(folder.glob("pytorch_model*.bin")):
            w.update(torch.load(f, map_location="cpu", weights_only=True))
    if not w:
        raise SystemExit(f"{folder} holds neither *.safetensors nor pytorch_model*.bin")
    return w, json.loads((folder / "config.json").read_text())


def write(out, weights, config, image_size, source, dtype):
    """Folder: weights (the Q-Former stays f32), configs, and what belongs to the tokenizer from the decoder's folder."""
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    keep = ("qformer.", "query_tokens")
    weights = {n: (t.float() if n.startswith(keep) else t.to(dtype)).contiguous() for n, t in weights.items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "BlipImageProcessor", "do_convert_rgb": True, "do_resize": True, "do_rescale": True,
        "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255, "image_mean": MEAN, "image_std": STD,
        "size": {"height": image_size, "width": image_size}}, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
                 "merges.txt", "generation_config.json"):
        if (pathlib.Path(source) / name).exists():
            shutil.copy(pathlib.Path(source) / name, out / name)


def report(unknown):
    if unknown:
        print(f"{len(unknown)} tensors were not known and left out: {', '.join(sorted(unknown)[:12])}"
              + (" ..." if len(unknown) > 12 else ""))
