"""Makes the tiny random checkpoints under tests/fixtures/tiny-* and their reference states.

    python tools/ref/tiny_models.py [name ...]

Every constant that a reader could hard-code by mistake differs between the fixtures: eps, theta, activation, head size,
picture size, feature layer, tensor names, config spelling, dtype.
"""
import re
import shutil
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration,
                          LlavaProcessor, PreTrainedTokenizerFast)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

import capture_ref
from common import (BOS, CLIP_MEAN, CLIP_STD, CORPUS, EOS, FIXTURES, IMAGE, PAD, make_picture, preprocess, read_json,
                    save_states, save_tokenizer, train_tokenizer, write_json)
from llava_plain import Plain

TOKENIZER_SIZE = 400
NEW_TOKENS = 32
SPACE = "USER: <image>\n{question} ASSISTANT:"
LINE = "USER: <image>\n{question}\nASSISTANT:"
TRACE = "<image>\nUSER: {question}? Answer in a few words.\nASSISTANT:"
CAPITAL = "What is the capital of this country?"
LEFT = "Which colour is the flag on the left?"
LONG = ("The people of this nation speak a language that is also the official language of its neighbour. "
        "It's what they don't say: 17 yellow circles from 1969 to 2026. The capital of")


def llama(**k):
    base = dict(vocab_size=TOKENIZER_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                num_attention_heads=4, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=BOS,
                eos_token_id=EOS, rms_norm_eps=1e-5)
    return {**base, **k}


def clip(**k):
    base = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=42,
                patch_size=14, projection_dim=16)
    return {**base, **k}


# layout: how tensors are named on disk.
#   "5.x"   what transformers 5.23 writes by default: language_model.model.* , vision_tower.embeddings.*
#   "model" the same model's own names: model.language_model.* , model.vision_tower.embeddings.* , lm_head
#   "4.52"  transformers 4.52 to 4.57: as "model", with vision_tower.vision_model.*
#   "old"   the published llava-hf checkpoints: language_model.model.* , language_model.lm_head, vision_tower.vision_model.*
SPECS = {
    "tiny-mha": dict(seed=11, layout="5.x", text=llama(), vision=clip(), picture=(61, 47), prompts=[(LINE, CAPITAL), (TRACE, LEFT)]),
    "tiny-gqa": dict(seed=21, layout="model", dtype=torch.float16, text=llama(num_hidden_layers=4, num_key_value_heads=2, intermediate_size=80,
                                                          tie_word_embeddings=True, rms_norm_eps=1e-6),
                     vision=clip(hidden_size=32, num_attention_heads=4, image_size=28, patch_size=7), picture=(37, 53),
                     prompts=[(SPACE, CAPITAL), (TRACE, LEFT)]),
    "tiny-rope": dict(seed=31, layout="5.x", dtype=torch.bfloat16,
                      text=llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0}),
                      vision=clip(), llava=dict(vision_feature_layer=-1, vision_feature_select_strategy="full",
                                                multimodal_projector_bias=False),
                      picture=(40, 99), prompts=[(SPACE, CAPITAL), (LINE, LEFT)]),
    "tiny-odd": dict(seed=41, layout="4.52", text=llama(hidden_size=40, num_attention_heads=5, intermediate_size=72,
                                                         rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
                     vision=clip(hidden_size=20, num_attention_heads=5, intermediate_size=44, image_size=35, patch_size=7,
                                 layer_norm_eps=1e-3),
                     llava=dict(vision_feature_layer=1), picture=(83, 45), stretch=True, prompts=[(LINE, CAPITAL), (TRACE, LEFT)]),
    "tiny-old": dict(seed=51, layout="old", dtype=torch.float16, vocab_rows=448,
                     text=llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
                     vision=clip(), picture=(47, 47), prompts=[(LINE, CAPITAL), (SPACE, LEFT)]),
    "tiny-list": dict(seed=61, layout="5.x", dtype=torch.bfloat16, text=llama(num_key_value_heads=1),
                      vision=clip(hidden_act="gelu", patch_size=21), pad=True, jpeg=True,
                      llava=dict(vision_feature_layer=[-3, -1], projector_hidden_act="gelu_pytorch_tanh"),
                      picture=(58, 31), prompts=[(SPACE, CAPITAL), (TRACE, LEFT)]),
    "tiny-llama": dict(seed=71, layout="5.x", dtype=torch.bfloat16,
                       text=llama(num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
                       prompts=[("{question}", LONG), ("USER: {question} ASSISTANT:", "What is the capital of the country?")]),
    "tiny-llama-bias": dict(seed=81, layout="5.x", text=llama(num_hidden_layers=2, num_key_value_heads=2, head_dim=12, attention_bias=True,
                                                              mlp_bias=True, tie_word_embeddings=True),
                            prompts=[("USER: {question} ASSISTANT:", "What is the capital of the country?")]),
}


def randomize(model, seed):
    """Weights large enough that every part shows in the logits; norm weights and biases are random too."""
    g = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            r = torch.randn(p.shape, generator=g)
            fan_in = p[0].numel() if p.dim() > 1 else 1
            if name.endswith("bias"):
                r = 0.2 * r
            elif "norm" in name or "layrnorm" in name:
                r = 1 + 0.25 * r.clamp(-2, 2)
                r = 1.6 * r if tied and name.endswith("model.norm.weight") else r
            elif "embed_tokens" in name:
                r = (0.3 if tied else 0.8) * r
            elif "class_embedding" in name or "position_embedding" in name:
                r = 0.5 * r
            else:
                gain = 2.5 if "lm_head" in name else 1.2 if re.search(r"[qk]_proj", name) else 0.8
                if tied and re.search(r"(o|down)_proj", name) and "layers" in name:
                    gain = 1.3  # or the model repeats its last token
                r = r * gain / fan_in ** 0.5
            p.copy_(r)


def old_name(name):
    """transformers 5 in memory -> the published llava-hf checkpoints."""
    for a, b in ((r"^model\.language_model\.", "language_model.model."), (r"^lm_head\.", "language_model.lm_head."),
                 (r"^model\.vision_tower\.", "vision_tower.vision_model."),
                 (r"^model\.multi_modal_projector\.", "multi_modal_projector.")):
        name, n = re.subn(a, b, name)
        if n:
            return name
    raise KeyError(name)


def old_config(config):
    """The short spelling of 2023: defaults left out, rope_theta and rope_scaling, torch_dtype, keys nobody reads."""
    t, v = config["text_config"], config["vision_config"]
    rope = t["rope_parameters"]
    text = {"_name_or_path": "someone/some-llama", "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "torch_dtype": "float16", "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": rope["rope_type"], "factor": rope["factor"]}}
    text.update({k: t[k] for k in ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
                                   "num_hidden_layers", "rms_norm_eps", "vocab_size")})
    vision = {k: v[k] for k in ("hidden_size", "image_size", "intermediate_size", "model_type", "num_attention_heads",
                                "num_hidden_layers", "patch_size", "projection_dim")}
    vision["vocab_size"] = 32000
    return {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": IMAGE,
            "model_type": "llava", "pad_token_id": PAD, "projector_hidden_act": "gelu", "text_config": text,
            "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
            "vision_config": vision, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
            "vocab_size": t["vocab_size"]}


def save_old(model, folder):
    """Old names in two shards, with the two kinds of constant tensors that old files carry."""
    w = {old_name(k): v.contiguous() for k, v in model.state_dict().items()}
    rows = model.model.vision_tower.embeddings.num_positions
    w["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(rows)[None]
    rope = capture_ref.decoder(model).rotary_emb
    for i in range(model.config.text_config.num_hidden_layers):
        w[f"language_model.model.layers.{i}.self_attn.rotary_emb.inv_freq"] = rope.inv_freq.clone()
    names, shards = sorted(w), ([], [])
    for i, n in enumerate(names):
        shards[i >= len(names) // 3].append(n)
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in w.values())}, "weight_map": {}}
    for i, part in enumerate(shards):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({n: w[n] for n in part}, str(folder / file), metadata={"format": "pt"})
        index["weight_map"].update({n: file for n in part})
    write_json(folder / "model.safetensors.index.json", index)


def save_model(model, spec, folder):
    layout = spec["layout"]
    model.save_pretrained(folder, save_original_format=layout == "5.x")
    if layout == "4.52":
        w = {k.replace("vision_tower.", "vision_tower.vision_model."): v.contiguous() for k, v in model.state_dict().items()}
        save_file(w, str(folder / "model.safetensors"), metadata={"format": "pt"})
    elif layout == "old":
        (folder / "model.safetensors").unlink()
        save_old(model, folder)
        write_json(folder / "config.json", old_config(read_json(folder / "config.json")))


def build(spec):
    text = LlamaConfig(**{**spec["text"], "vocab_size": spec.get("vocab_rows", TOKENIZER_SIZE)})
    if "vision" not in spec:
        model = LlamaForCausalLM(text)
    else:
        v = CLIPVisionConfig(**spec["vision"])
        patches = (v.image_size // v.patch_size) ** 2
        extra = {"vision_feature_layer": -2, **spec.get("llava", {})}
        full = extra.get("vision_feature_select_strategy") == "full"
        model = LlavaForConditionalGeneration(LlavaConfig(
            vision_config=v, text_config=text, image_token_index=IMAGE, image_seq_length=patches + full, **extra))
    randomize(model, spec["seed"])
    return model.to(spec.get("dtype", torch.float32)).eval()


def image_rows(config):
    """Rows that replace <image>; from the tower, as image_seq_length is missing in older files."""
    v = config.vision_config
    return (v.image_size // v.patch_size) ** 2 + (config.vision_feature_select_strategy == "full")


def preprocessor(spec):
    """preprocessor_config.json: shortest edge and crop; old short numbers; plain height x width; square pad."""
    n = clip(**spec["vision"])["image_size"]
    cfg = {"crop_size": {"height": n, "width": n}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
           "do_rescale": True, "do_resize": True, "image_mean": CLIP_MEAN, "image_processor_type": "LlavaImageProcessor",
           "image_std": CLIP_STD, "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": n}}
    if spec["layout"] == "old":
        for k in ("image_processor_type", "do_rescale", "rescale_factor", "do_convert_rgb"):
            del cfg[k]
        cfg.update(feature_extractor_type="CLIPFeatureExtractor", crop_size=n, size=n)
    if spec.get("stretch"):
        cfg.update(size={"height": n, "width": n}, do_center_crop=False, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        del cfg["crop_size"]
    if spec.get("pad"):
        cfg.update(do_pad=True)
    return cfg


def check_inputs(folder, spec, cfg, image, pixels, tok, prompt, ids):
    """Pixels and expanded ids against transformers' own processors."""
    known = {k: v for k, v in cfg.items() if k not in ("image_processor_type", "feature_extractor_type")}
    theirs = LlavaImageProcessorPil(**known)
    got = np.asarray(theirs(images=image, return_tensors="np")["pixel_values"][0])
    assert got.shape == pixels.shape and np.array_equal(got, pixels), np.abs(got - pixels).max()
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>",
                                   unk_token="<unk>", pad_token="<pad>", extra_special_tokens={"image_token": "<image>"})
    both = LlavaProcessor(image_processor=theirs, tokenizer=fast, patch_size=spec["vision"]["patch_size"],
                          vision_feature_select_strategy=spec.get("llava", {}).get("vision_feature_select_strategy", "default"),
                          num_additional_image_tokens=1)
    assert both(images=image, text=prompt, return_tensors="np")["input_ids"][0].tolist() == ids
    if spec["layout"] == "model":  # transformers 5 keeps everything in one file
        both.save_pretrained(folder / "tmp")
        shutil.copy(folder / "tmp" / "processor_config.json", folder / "processor_config.json")
        shutil.rmtree(folder / "tmp")


def compare(states, other, limit):
    """Worst |difference| / max(1, rms) over the sites; both must hold the same names."""
    assert set(states) == set(other), set(states) ^ set(other)
    worst = ("", 0.0)
    for name, want in other.items():
        scale = max(1.0, float(want.double().square().mean().sqrt()))
        err = float((states[name].double() - want.double()).abs().max()) / scale
        assert np.isfinite(err)
        worst = max(worst, (name, err), key=lambda t: t[1])
    assert worst[1] < limit, worst
    return worst


class Unlucky(Exception):
    """The greedy text comes too near a tie or contains a special token: take another seed."""


def make(name):
    for attempt in range(200):
        try:
            return make_once(name, {**SPECS[name], "seed": SPECS[name]["seed"] + 100 * attempt})
        except Unlucky as e:
            print(f"{name}: next seed ({e})")
    raise RuntimeError(name)


def make_once(name, spec):
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tok = train_tokenizer(CORPUS, TOKENIZER_SIZE)
    save_tokenizer(tok, folder, old=spec["layout"] == "old")
    save_model(build(spec), spec, folder)
    write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
                                                   "transformers_version": "5.23.0"})
    model, pixels, image = capture_ref.load(folder), None, None
    meta = {"name": name, "seed": spec["seed"], "transformers": "5.23.0", "torch": "2.13.0", "dtype_on_disk": str(spec.get("dtype", torch.float32))}
    if "vision" in spec:
        cfg = preprocessor(spec)
        write_json(folder / "preprocessor_config.json", cfg)
        file = folder / ("picture.jpg" if spec.get("jpeg") else "picture.png")
        make_picture(*spec["picture"], spec["seed"]).save(file, **({"quality": 95, "subsampling": 0} if spec.get("jpeg") else {}))
        image = Image.open(file)
        pixels = preprocess(image, cfg)
        meta["picture"] = file.name
    out = {}
    for i, (template, question) in enumerate(spec["prompts"]):
        prompt = template.replace("{question}", question)
        raw = tok.encode(prompt).ids
        n = image_rows(model.config) if pixels is not None else 1
        ids = [x for t in raw for x in ([t] * n if t == IMAGE else [t])]
        if pixels is not None:
            check_inputs(folder, spec, cfg, image, pixels, tok, prompt, ids)
        states = capture_ref.capture(model, ids, pixels)
        f32, f64 = Plain(folder, torch.float32).run(ids, pixels), Plain(folder, torch.float64).run(ids, pixels)
        a, b = compare(f32, states, 2e-5), compare(states, f64, 2e-5)
        new, gap = capture_ref.greedy(model, ids, pixels, NEW_TOKENS)
        if gap < 5e-3 or set(new) & {EOS, PAD, BOS} or max(new) >= TOKENIZER_SIZE or len(set(new)) < 8 - 4 * i:
            raise Unlucky(f"question {i}: gap {gap:.4f}")
        text = tok.decode(new, skip_special_tokens=True)
        q = "" if i == 0 else f"q{i}."
        meta.update({q + "prompt": prompt, q + "template": template, q + "question": question, q + "greedy_text": text})
        out.update({q + "prompt_ids": raw, q + "input_ids": ids, q + "greedy": new})
        if i == 0:
            low = capture_ref.capture(capture_ref.load(folder, torch.bfloat16), ids, pixels)["logits"]
            e = (low - states["logits"]).double()
            meta["bf16_err"] = {"max": float(e.abs().max()), "rms": float(e.square().mean().sqrt())}
            meta["f32_err"] = {"worst": b[1], "site": b[0]}
            if len(ids) > 40:  # small files: the first layer's pattern stands for all of a long prompt's
                states = {k: v for k, v in states.items() if not re.match(r"decoder\.[1-9]\d*\.pattern", k)}
            out.update(states)
            out["bf16.logits"] = low
            if pixels is not None:
                out["pixel_values"] = pixels
        else:
            out[q + "last_logits"] = states["logits"][-1]
        rms = float(states["logits"].square().mean().sqrt())
        print(f"{name} q{i}: T {len(ids)}, logits rms {rms:.2f}, p {float(states['logits'][-1].softmax(-1).max()):.3f}, gap {gap:.4f}, "
              f"plain f32 {a[1]:.1e} ({a[0]}), f64 {b[1]:.1e} ({b[0]})" + (f", bf16 {meta['bf16_err']}" if i == 0 else ""))
    save_states(folder / "states.safetensors", out, meta)
    size = {f.name: f.stat().st_size for f in folder.iterdir()}
    print(f"  {sum(size.values()) / 1024:.0f} KiB: {size}")


if __name__ == "__main__":
    for n in sys.argv[1:] or SPECS:
        make(n)
