"""Makes tests/fixtures/tiny-{opt,phi,gpt2,mistral,qwen2}, the LLaVA variants, tiny-bunny and tiny-liuhaotian.

    python tools/ref/tiny_families.py [name ...]

Small: two layers, short prompts. What is easy to get wrong differs from the defaults in each: eps, scalings of the rotary
embedding, windows shorter than the prompt, heads, activations, names.
"""
import copy
import json
import re
import shutil
import sys

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, CLIPVisionConfig, GPT2Config, LlamaConfig, LlavaConfig,
                          LlavaForConditionalGeneration, MistralConfig, OPTConfig, PhiConfig, Qwen2Config, SiglipVisionConfig)

import bunny_ref
import capture_ref
from common import (BOS, CLIP_MEAN, CLIP_STD, CORPUS, EOS, FIXTURES, IMAGE, PAD, make_picture, preprocess, read_json,
                    save_states, save_tokenizer, train_tokenizer, write_json)
from tiny_models import Unlucky

VOCAB = 320
NEW_TOKENS = 32
IDS = dict(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
COMMON = dict(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=96, **IDS)
GATED = dict(intermediate_size=48, rms_norm_eps=1e-5, **COMMON)
ASK = "USER: {question} ASSISTANT:"
SEE = "USER: <image>\n{question} ASSISTANT:"
CAPITAL = "What is the capital of this country?"
LEFT = "Which colour is on the left?"
HALF = [0.5] * 3
F16, BF16 = torch.float16, torch.bfloat16
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 24}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 24}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.15, 1.7], "long_factor": [2.0, 3.0, 5.0],
        "original_max_position_embeddings": 60}


def clip(**k):
    return CLIPVisionConfig(**{**dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
                                      image_size=18, patch_size=9, projection_dim=16), **k})


def siglip(**k):
    return SiglipVisionConfig(**{**dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
                                        image_size=20, patch_size=9), **k})


SPECS = {
    "tiny-opt": dict(seed=101, config=OPTConfig(ffn_dim=64, word_embed_proj_dim=24, **COMMON), dtype=F16),
    "tiny-phi": dict(seed=111, config=PhiConfig(intermediate_size=64, partial_rotary_factor=0.6, layer_norm_eps=1e-4,
                                                rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                                                                 "partial_rotary_factor": 0.6}, **{**COMMON, "hidden_size": 30, "num_attention_heads": 3}),
                     dtype=F16),
    "tiny-gpt2": dict(seed=121, config=GPT2Config(vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=4, n_positions=96, n_inner=64,
                                                  layer_norm_epsilon=1e-4, **IDS)),
    "tiny-mistral": dict(seed=131, config=MistralConfig(num_key_value_heads=2, sliding_window=6, head_dim=12,
                                                        rope_parameters=LLAMA3, **GATED), dtype=BF16),
    "tiny-qwen2": dict(seed=141, config=Qwen2Config(num_key_value_heads=2, use_sliding_window=True, sliding_window=5,
                                                    max_window_layers=1, rope_parameters=YARN, tie_word_embeddings=True, **GATED),
                       dtype=BF16),
    "tiny-llava-mistral": dict(seed=151, dtype=BF16, text=MistralConfig(num_key_value_heads=1, sliding_window=None, rope_parameters=LONG,
                                                                        **GATED),
                               tower=clip(), llava=dict(vision_feature_layer=-2), prompts=[("<image>\n{question}", "What is this country?"), (SEE, LEFT)]),
    "tiny-llava-qwen2": dict(seed=161, dtype=BF16, text=Qwen2Config(num_key_value_heads=2, **GATED), tower=siglip(),
                             llava=dict(vision_feature_layer=-1, vision_feature_select_strategy="full"),
                             prompts=[("<image>\n{question}", "What is this country?"), (SEE, LEFT)]),
    "tiny-bunny": dict(seed=171, dtype=F16, bunny=PhiConfig(intermediate_size=64, partial_rotary_factor=0.4, rope_parameters={
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}, **{**COMMON, "hidden_size": 30, "num_attention_heads": 3}),
                       tower=siglip(), prompts=[("<image>\n{question}", "What is this country?"), (SEE, LEFT)]),
    "tiny-liuhaotian": dict(seed=181, dtype=F16, text=LlamaConfig(**GATED), tower=clip(), llava=dict(vision_feature_layer=-2), liuhaotian=True,
                            prompts=[("<image>\n{question}", "What is this country?"), (SEE, LEFT)]),
}


def randomize(model, seed):
    """Weights large enough that every part shows in the logits; norm weights, biases and positions are random too."""
    g = torch.Generator().manual_seed(seed)
    tied = getattr(model.config, "tie_word_embeddings", False)
    final = capture_ref.parts(model)[0]["norm"]
    done = set()
    with torch.no_grad():
        for path, module in sorted(model.named_modules()):
            for name, p in module.named_parameters(recurse=False):
                if id(p) in done:
                    continue
                done.add(id(p))
                r = torch.randn(p.shape, generator=g)
                kind = type(module).__name__
                if name == "bias":
                    r = 0.2 * r
                elif "Norm" in kind:
                    r = 1 + 0.25 * r.clamp(-2, 2)
                    r = 1.6 * r if tied and path.endswith("." + final) and ".layers." not in path else r
                elif "Embedding" in kind:
                    r = (0.4 if re.search("pos|wpe", path) else 0.3 if tied else 0.8) * r
                elif p.dim() < 2:
                    r = 0.5 * r  # class row
                else:
                    fan_in = p.shape[0] if kind == "Conv1D" else p[0].numel()
                    gain = 2.5 if "lm_head" in path else 1.2 if re.search(r"[qk]_proj|c_attn", path) else 0.9
                    if tied and re.search(r"(o_proj|out_proj|down_proj|fc2|c_proj|dense)$", path):
                        gain = 1.4  # or the model repeats its last token
                    r = r * gain / fan_in ** 0.5
                p.copy_(r)


def build(spec):
    if "bunny" in spec:
        model = bunny_ref.Bunny(spec["bunny"], spec["tower"])
    elif "text" in spec:
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=spec["tower"], text_config=spec["text"],
                                                          image_token_index=IMAGE, image_seq_length=1, **spec["llava"]))
    else:
        model = AutoModelForCausalLM.from_config(spec["config"])
    randomize(model, spec["seed"])
    return bunny_ref.cast(model, spec.get("dtype", torch.float32)).eval()


def image_rows(config):
    """Rows of the decoder that a picture takes."""
    v, full = config.vision_config, config.vision_feature_select_strategy == "full"
    has_class = v.model_type.startswith("clip")
    return (v.image_size // v.patch_size) ** 2 + has_class - (not full)


def preprocessor(spec):
    n = spec["tower"].image_size
    cfg = {"crop_size": {"height": n, "width": n}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
           "do_rescale": True, "do_resize": True, "image_mean": CLIP_MEAN, "image_processor_type": "CLIPImageProcessor",
           "image_std": CLIP_STD, "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": n}}
    if spec["tower"].model_type.startswith("siglip"):
        cfg.update(image_processor_type="SiglipImageProcessor", size={"height": n, "width": n}, do_center_crop=False,
                   image_mean=HALF, image_std=HALF)
        del cfg["crop_size"]
    return cfg


def save_liuhaotian(model, folder, cfg):
    """The layout of the LLaVA repository: the decoder's checkpoint with the projector in it, the tower in a folder beside."""
    model.save_pretrained(folder)
    w = load_file(str(folder / "model.safetensors"))
    text, tower = {}, {}
    for name, t in w.items():
        for a, b in ((r"^(model\.)?language_model\.(model\.)?lm_head", "lm_head"), (r"^language_model\.model\.", "model."),
                     (r"^(model\.)?multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
                     (r"^(model\.)?multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
                     (r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_model.")):
            new, n = re.subn(a, b, name)
            if n:
                break
        else:
            new = name
            assert name.startswith("lm_head"), name
        (tower if new.startswith("vision_model.") else text)[new] = t.contiguous()
    save_file(text, str(folder / "model.safetensors"), metadata={"format": "pt"})
    c = read_json(folder / "config.json")["text_config"]
    rope = c.pop("rope_parameters")
    keep = {k: c[k] for k in ("bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings",
                              "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size")}
    write_json(folder / "config.json", {
        "_name_or_path": "llava-tiny", "architectures": ["LlavaLlamaForCausalLM"], **keep, "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad", "mm_hidden_size": model.config.vision_config.hidden_size, "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2, "mm_vision_tower": "openai/clip-tiny", "model_type": "llava", "pretraining_tp": 1,
        "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16", "tune_mm_mlp_adapter": False, "use_cache": True,
        "use_mm_proj": True})
    assert rope["rope_theta"] == 10000.0
    there = folder / "clip-tiny"
    there.mkdir()
    save_file(tower, str(there / "model.safetensors"), metadata={"format": "pt"})
    vision = model.config.vision_config.to_dict()
    write_json(there / "config.json", {"model_type": "clip", "vision_config": {k: vision[k] for k in (
        "hidden_act", "hidden_size", "image_size", "intermediate_size", "layer_norm_eps", "model_type", "num_attention_heads",
        "num_hidden_layers", "patch_size")}})
    write_json(there / "preprocessor_config.json", cfg)


def save(model, spec, folder):
    if "bunny" in spec:
        bunny_ref.save(model, folder)
    elif spec.get("liuhaotian"):
        save_liuhaotian(model, folder, preprocessor(spec))
    else:
        model.save_pretrained(folder)
        if "tower" in spec:
            write_json(folder / "preprocessor_config.json", preprocessor(spec))


def load(model, spec, folder, dtype=torch.float32):
    """The saved checkpoint again; layouts that transformers cannot read are run from memory in the rounded weights."""
    if spec.get("liuhaotian"):
        for p in model.modules():
            cfg = getattr(p, "config", None)
            if cfg is not None:
                cfg._attn_implementation = "eager"
        return bunny_ref.cast(copy.deepcopy(model), dtype)
    return capture_ref.load(folder, dtype)


def encode(tok, prompt, split):
    """Ids with one IMAGE where the picture goes. split: each side is encoded on its own, as the repositories of LLaVA and
    Bunny do; a second <s> is dropped."""
    if not split or "<image>" not in prompt:
        return tok.encode(prompt).ids
    a, b = (tok.encode(s).ids for s in prompt.split("<image>"))
    return a + [IMAGE] + (b[1:] if b[:1] == [BOS] else b)


def make(name):
    for attempt in range(300):
        try:
            return make_once(name, {**SPECS[name], "seed": SPECS[name]["seed"] + 1000 * attempt})
        except Unlucky as e:
            print(f"{name}: next seed ({e})")
    raise RuntimeError(name)


def make_once(name, spec):
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tok = train_tokenizer(CORPUS, VOCAB)
    save_tokenizer(tok, folder)
    split = "bunny" in spec or spec.get("liuhaotian")
    built = build(spec)
    save(built, spec, folder)
    write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD})
    model, pixels = load(built, spec, folder), None
    meta = {"name": name, "seed": spec["seed"], "transformers": "5.23.0", "torch": "2.13.0", "dtype_on_disk": str(spec.get("dtype", torch.float32))}
    if "tower" in spec:
        cfg = preprocessor(spec)
        if split:
            cfg["do_pad"] = True
        make_picture(31, 24, spec["seed"]).save(folder / "picture.png")
        pixels = preprocess(Image.open(folder / "picture.png"), cfg)
        meta["picture"] = "picture.png"
    out = {}
    for i, (template, question) in enumerate(spec.get("prompts", [("{question}", CAPITAL), (ASK, LEFT)])):
        prompt = template.replace("{question}", question)
        raw = encode(tok, prompt, split)
        n = image_rows(model.config) if pixels is not None else 1
        ids = [x for t in raw for x in ([t] * n if t == IMAGE else [t])]
        states = capture_ref.capture(model, ids, pixels)
        new, gap = capture_ref.greedy(model, ids, pixels, NEW_TOKENS)
        if gap < 5e-3 or set(new) & {EOS, PAD, BOS, IMAGE} or len(set(new)) < 6 - 3 * i:
            raise Unlucky(f"question {i}: gap {gap:.4f}, {len(set(new))} different tokens")
        q = "" if i == 0 else f"q{i}."
        meta.update({q + "prompt": prompt, q + "template": template, q + "question": question,
                     q + "greedy_text": tok.decode(new, skip_special_tokens=True)})
        ids = [-200 if split and t == IMAGE else t for t in ids]
        out.update({q + "input_ids": ids, q + "greedy": new})
        if i == 0:
            low = capture_ref.capture(load(built, spec, folder, BF16), [IMAGE if t == -200 else t for t in ids], pixels)["logits"]
            e = (low - states["logits"]).double()
            meta["bf16_err"] = {"max": float(e.abs().max()), "rms": float(e.square().mean().sqrt())}
            out.update({k: v for k, v in states.items() if not re.match(r"\w+\.[1-9]\d*\.pattern", k) or len(ids) < 20})
            out["bf16.logits"] = low
            if pixels is not None:
                out["pixel_values"] = pixels
        else:
            out[q + "last_logits"] = states["logits"][-1]
        print(f"{name} q{i}: T {len(ids)}, logits rms {float(states['logits'].square().mean().sqrt()):.2f}, gap {gap:.4f}, "
              f"{json.dumps(meta[q + 'greedy_text'])}" + (f", bf16 {meta['bf16_err']}" if i == 0 else ""))
    save_states(folder / "states.safetensors", out, meta)
    size = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
    print(f"  {sum(size.values()) / 1024:.0f} KiB: {size}")


if __name__ == "__main__":
    for n in sys.argv[1:] or SPECS:
        make(n)
