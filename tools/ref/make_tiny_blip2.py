"""Makes tests/fixtures/tiny-blip2 (transformers' own class), tiny-blip2-old (no picture token, a deeper Q-Former) and
tiny-minigpt4 (minigpt4_ref.py), their states, and one whole causal map of tiny-blip2.

    python tools/ref/make_tiny_blip2.py [name ...]

tiny-minigpt4's pictures are larger than its tower's own size, so position embeddings are interpolated.
"""
import json
import re
import shutil
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, LlamaConfig, OPTConfig,
                          PreTrainedTokenizerFast)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import blip2_ref
import capture_ref
import minigpt4_ref
import trace_ref
from common import (BOS, CLIP_MEAN, CLIP_STD, CORPUS, EOS, FIXTURES, IMAGE, PAD, make_picture, preprocess, read_json,
                    save_states, save_tokenizer, sha256, train_tokenizer, write_json)
from tiny_models import Unlucky

VOCAB = 400
NEW_TOKENS = 24
IDS = dict(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
ASK = "<image>Question: {question} Answer:"
SHORT = "<image>Question: {question} Short answer:"
WRAP = "###Human: <Img><image></Img> {question}"
CAPITAL = "What is the capital of this country?"
LEFT = "Which colour is on the left?"


def opt(**k):
    return OPTConfig(**{**dict(vocab_size=VOCAB, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=3,
                               num_attention_heads=4, ffn_dim=56, max_position_embeddings=128, **IDS), **k})


def llama(**k):
    return LlamaConfig(**{**dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                 num_attention_heads=4, max_position_embeddings=128, rms_norm_eps=1e-6, **IDS), **k})


def vision(**k):
    return {**dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=28,
                   patch_size=7), **k}


def qformer(**k):
    return {**dict(vocab_size=30, hidden_size=28, num_hidden_layers=3, num_attention_heads=4, intermediate_size=44,
                   max_position_embeddings=16), **k}


SPECS = {
    "tiny-blip2": dict(seed=211, dtype=torch.float16, text=opt(), vision=vision(), qformer=qformer(), queries=5, token=IMAGE,
                       prompts=[(ASK, CAPITAL), (SHORT, LEFT)]),
    "tiny-blip2-old": dict(seed=221, dtype=torch.float16, text=opt(num_hidden_layers=2), queries=3, token=None,
                           drop=r"vision\.\d|decoder\.\d\.([qkv]|pattern|head_out|mlp_act)$",
                           vision=vision(num_hidden_layers=2, layer_norm_eps=1e-3, hidden_act="quick_gelu"),
                           qformer=qformer(num_hidden_layers=4, cross_attention_frequency=3, hidden_size=16,
                                           num_attention_heads=2, layer_norm_eps=1e-4),
                           prompts=[(ASK, CAPITAL), (SHORT, LEFT)]),
    "tiny-minigpt4": dict(seed=231, dtype=torch.float16, text=llama(), vision=vision(num_hidden_layers=2), qformer=qformer(),
                          queries=4, size=35, post_eps=1e-2, prompts=[(WRAP, CAPITAL), (WRAP, LEFT)]),
}


def randomize(model, seed):
    """Weights large enough that every part shows in the logits; norms, biases, queries and positions are random too."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            r = torch.randn(p.shape, generator=g)
            tied = isinstance(model, Blip2ForConditionalGeneration)
            if name.endswith("qkv.bias"):
                r = 0.2 * r
                r[len(r) // 3:2 * len(r) // 3] = 0  # keys have none
            elif name.endswith("bias"):
                r = 0.2 * r
            elif "norm" in name.lower():
                r = 1 + 0.25 * r.clamp(-2, 2)
                r = 1.6 * r if name.endswith("decoder.final_layer_norm.weight") else r
            elif "embed_positions" in name:
                r = 0.4 * r
            elif "embed_tokens" in name:
                r = (0.3 if tied else 0.8) * r
            elif "query_tokens" in name or "class_embedding" in name:
                r = r
            elif "position_embedding" in name:
                r = 0.5 * r
            else:
                gain = 2.5 if "lm_head" in name else 1.2 if re.search(r"[qk]_proj|query|key|qkv", name) else 0.9
                if tied and re.search(r"language_model.*(out_proj|fc2)", name):
                    gain = 1.4
                if "projection" in name and "vision" not in name or "llama_proj" in name:
                    gain = 0.8
                r = r * gain / p[0].numel() ** 0.5
            p.copy_(r)


def build(spec):
    parts = dict(vision_config=spec["vision"], qformer_config=spec["qformer"], num_query_tokens=spec["queries"])
    if spec["text"].model_type == "llama":
        model = minigpt4_ref.MiniGPT4({**parts, "text_config": {k: v for k, v in spec["text"].to_dict().items() if k != "model_type"}})
    else:
        model = Blip2ForConditionalGeneration(Blip2Config(text_config=spec["text"].to_dict(), image_token_index=IMAGE, **parts))
    randomize(model, spec["seed"])
    model = model.to(spec["dtype"]).eval()
    model.qformer.float()  # as the published checkpoints: f16, with the Q-Former in f32
    model.query_tokens.data = model.query_tokens.data.float()
    return model


def save(model, spec, folder):
    if isinstance(model, minigpt4_ref.MiniGPT4):
        config = {"model_type": "minigpt4", "num_query_tokens": spec["queries"],
                  "vision_config": {"model_type": "blip_2_vision_model", **spec["vision"], "post_layernorm_eps": spec["post_eps"]},
                  "qformer_config": {"model_type": "blip_2_qformer", **spec["qformer"]},
                  "text_config": {k: v for k, v in spec["text"].to_dict().items()}}
        write_json(folder / "config.json", config)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return
    model.save_pretrained(folder)
    if spec["token"] is None:
        config = read_json(folder / "config.json")
        del config["image_token_index"]
        config["qformer_config"]["position_embedding_type"] = "absolute"
        write_json(folder / "config.json", config)


def load(spec, folder, dtype=torch.float32):
    if spec.get("token", 0) is not None:
        return blip2_ref.load(folder, dtype)
    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    model.config.image_token_index = IMAGE  # only marks the rows
    return model


def preprocessor(spec):
    n = spec.get("size", spec["vision"]["image_size"])
    return {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": CLIP_MEAN,
            "image_processor_type": "BlipImageProcessor", "image_std": CLIP_STD, "resample": 3, "rescale_factor": 1 / 255,
            "size": {"height": n, "width": n}}


def check_inputs(folder, spec, cfg, image, pixels, prompt, ids):
    """Pixels and ids against transformers' own processor."""
    known = {k: v for k, v in cfg.items() if k != "image_processor_type"}
    theirs = BlipImageProcessorPil(**known)
    got = np.asarray(theirs(images=image, return_tensors="np")["pixel_values"][0])
    assert got.shape == pixels.shape and np.abs(got - pixels).max() < 1e-6, np.abs(got - pixels).max()
    if spec["text"].model_type == "llama":
        return
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>",
                                   unk_token="<unk>", pad_token="<pad>")
    both = Blip2Processor(image_processor=theirs, tokenizer=fast, num_query_tokens=spec["queries"])
    assert both(images=image, text=prompt.removeprefix("<image>"), return_tensors="np")["input_ids"][0].tolist() == ids


def encode(tok, spec, prompt):
    """Expanded ids as the two programs make them."""
    if spec["text"].model_type == "llama":
        head, tail = prompt.split("<image>")
        assert head == "###Human: <Img>" and tail.startswith("</Img> ")
        return minigpt4_ref.prompt_ids(tok, spec["queries"], tail.removeprefix("</Img> "))
    return [IMAGE] * spec["queries"] + tok.encode(prompt.removeprefix("<image>")).ids


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
    save(build(spec), spec, folder)
    write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD})
    cfg = preprocessor(spec)
    write_json(folder / "preprocessor_config.json", cfg)
    make_picture(47, 36, spec["seed"]).save(folder / "picture.png")
    image = Image.open(folder / "picture.png")
    pixels = preprocess(image, cfg)
    model = load(spec, folder)
    meta = {"name": name, "seed": spec["seed"], "transformers": "5.23.0", "torch": "2.13.0",
            "dtype_on_disk": str(spec["dtype"]), "picture": "picture.png"}
    out = {}
    for i, (template, question) in enumerate(spec["prompts"]):
        prompt = template.replace("{question}", question)
        ids = encode(tok, spec, prompt)
        check_inputs(folder, spec, cfg, image, pixels, prompt, ids)
        states = blip2_ref.capture(model, ids, pixels)
        new, gap = blip2_ref.greedy(model, ids, pixels, NEW_TOKENS)
        if gap < 5e-3 or set(new) & {EOS, PAD, BOS, IMAGE} or len(set(new)) < 8 - 4 * i:
            raise Unlucky(f"question {i}: gap {gap:.4f}, {len(set(new))} different tokens")
        other = blip2_ref.capture(model, ids, pixels[:, ::-1].copy())["logits"][-1]  # the picture must matter
        moved = float((other - states["logits"][-1]).abs().max())
        if moved < 0.3:
            raise Unlucky(f"question {i}: the picture moves the logits by {moved:.3f}")
        shown = [-200 if spec.get("token", 0) is None and t == IMAGE else t for t in ids]
        q = "" if i == 0 else f"q{i}."
        meta.update({q + "prompt": prompt, q + "template": template, q + "question": question,
                     q + "greedy_text": tok.decode(new, skip_special_tokens=True)})
        out.update({q + "input_ids": shown, q + "greedy": new})
        if i == 0:
            low = blip2_ref.capture(load(spec, folder, torch.bfloat16), ids, pixels)["logits"]
            e = (low - states["logits"]).double()
            meta["bf16_err"] = {"max": float(e.abs().max()), "rms": float(e.square().mean().sqrt())}
            out.update({k: t for k, t in states.items() if not re.match(spec.get("drop", r"vision\.[1-9]\.(pattern|[kv]$)"), k)})
            out.update({"bf16.logits": low, "pixel_values": pixels})
        else:
            out[q + "last_logits"] = states["logits"][-1]
        print(f"{name} q{i}: T {len(ids)}, logits rms {float(states['logits'].square().mean().sqrt()):.2f}, "
              f"gap {gap:.4f}, picture {moved:.2f}" + (f", bf16 {meta['bf16_err']}" if i == 0 else ""))
    save_states(folder / "states.safetensors", out, meta)
    if name == "tiny-blip2":
        make_maps(folder, model)
    size = {f.name: f.stat().st_size for f in folder.iterdir()}
    print(f"  {sum(size.values()) / 1024:.0f} KiB: {size}")


class Rig(trace_ref.Rig):
    """OPT's components: its MLP works on flattened rows."""

    def __init__(self, model):
        self.model, self.record, self.edits = model, None, None
        for i, block in enumerate(capture_ref.decoder(model).layers):
            for site, module in (("attn", block.self_attn.out_proj), ("mlp", block.fc2), ("hidden", block)):
                module.register_forward_hook(self.shaped(self.hook(site, i)))

    def shaped(self, hook):
        def fire(module, args, y):
            t = y[0] if isinstance(y, tuple) else y
            t = hook(module, args, t.view(self.shape))
            t = t.view(y[0].shape if isinstance(y, tuple) else y.shape)
            return (t, *y[1:]) if isinstance(y, tuple) else t
        return fire

    def logits(self, embeds, edits=None, record=None):
        self.shape = embeds.shape
        return super().logits(embeds, edits, record)


class Item(trace_ref.Item):
    """Picture rows come first, before the BOS; offsets are those of the whole prompt."""

    def expand(self, text):
        assert text.startswith("<image>")
        enc, n = self.tok.encode(text.removeprefix("<image>")), len("<image>")
        rows = [0] + list(range(self.n, self.n + len(enc.ids)))
        return [self.image_id] * self.n + enc.ids, rows, [(0, n)] + [(a + n, b + n) if b > a else (0, 0) for a, b in enc.offsets]


def make_maps(folder, model):
    make_picture(50, 41, 9).save(folder / "donor.png")
    cfg = read_json(folder / "preprocessor_config.json")
    pixels, donor = (preprocess(Image.open(folder / f), cfg) for f in ("picture.png", "donor.png"))
    prompt = "<image>Question: What is the capital of [this country]? Answer:"
    item = Item(Tokenizer.from_file(str(folder / "tokenizer.json")), prompt, model.config.num_query_tokens)
    plain, trace_ref.embed = trace_ref.embed, lambda _, ids, px: blip2_ref.embed(model, ids, px)
    noise = np.random.default_rng(5).normal(0, 1.0, (3, len(item.span), 32)).astype(np.float32)
    out = trace_ref.trace(Rig(model.language_model), item, pixels, item.replaced("the flag"), noise, donor, noising=True)
    trace_ref.embed = plain
    trace_ref.check(out)
    if abs(float(out["p_clean"][0] - out["p_corr"][0])) < 0.02:
        raise Unlucky(f"p clean {float(out['p_clean'][0]):.4f}, corrupted {float(out['p_corr'][0]):.4f}")
    save_states(folder / "maps.safetensors", out, {
        "prompt": item.prompt, "constraint": item.words, "replace": "the flag", "picture": "picture.png", "donor": "donor.png",
        "noise_std": 1.0, "states_sha256": sha256(folder / "states.safetensors")})
    print(f"maps: rows {item.positions[0]}..{item.positions[-1]}, span {item.span}, p clean {float(out['p_clean'][0]):.4f}, "
          f"corrupted {float(out['p_corr'][0]):.4f}, noise {float(out['p_corr.noise'][0]):.4f}, donor {float(out['p_donor'][0]):.4f}")


if __name__ == "__main__":
    for n in sys.argv[1:] or SPECS:
        make(n)
