"""Headers of real checkpoints: tests/fixtures/headers/*.json, names, shapes and dtypes without a single weight.

    python tools/ref/make_headers.py

The configs are the published ones; the tensors are those of transformers' own classes, built on the meta device from these
configs and renamed to the layout of the published files. `unused`: patterns of tensors that the program rightly does not
read. tests/test_model.c binds each header and wants nothing left but these.
"""
import json
import re

import torch
from transformers import (Blip2Config, Blip2ForConditionalGeneration, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PhiConfig,
                          PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel)

import minigpt4_ref
from common import FIXTURES
from tiny_models import old_name

FOLDER = FIXTURES / "headers"


def write(name, config, tensors, unused, dtype=lambda name: "F16", **expect):
    """tensors: {name: shape}; in f16, as most are published."""
    FOLDER.mkdir(exist_ok=True)
    lines = ",\n".join(f'    {json.dumps(k)}: ["{dtype(k)}", {", ".join(map(str, s))}]' for k, s in sorted(tensors.items()))
    total = sum(torch.Size(s).numel() for s in tensors.values())
    head = json.dumps({"name": name, "made_by": "python tools/ref/make_headers.py", "expect": {"elements": total, **expect},
                       "unused": unused, "config": config}, indent=2)
    (FOLDER / f"{name.split('/')[-1].lower()}.json").write_text(head[:-2] + ',\n  "tensors": {\n' + lines + "\n  }\n}\n")
    print(f"{name}: {len(tensors)} tensors, {total / 1e9:.3f} billion elements")


def shapes(model):
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


def llava(name, text, **expect):
    vision = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
              "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000}
    config = {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
              "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu", "text_config": text,
              "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
              "vision_config": vision, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
              "vocab_size": 32064}
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(
            **{k: v for k, v in text.items() if k not in ("architectures", "_name_or_path", "torch_dtype")})))
    tower = "vision_tower.vision_model."
    write(name, config, {old_name(k): s for k, s in shapes(model).items()},
          [tower + "post_layernorm.*", tower + "encoder.layers.23.*"], image_rows=576, vision_layers=23, **expect)


def bunny():
    """The released folder: the tower's last layer and its pooling head are not in the file."""
    config = {"_name_or_path": "BAAI/bunny-phi-2-siglip", "architectures": ["BunnyPhiForCausalLM"], "attention_dropout": 0.0,
              "auto_map": {"AutoConfig": "configuration_bunny_phi.BunnyPhiConfig",
                           "AutoModelForCausalLM": "modeling_bunny_phi.BunnyPhiForCausalLM"},
              "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256, "freeze_mm_mlp_adapter": False,
              "hidden_act": "gelu_new", "hidden_size": 2560, "image_aspect_ratio": "pad", "initializer_range": 0.02,
              "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "mm_hidden_size": 1152,
              "mm_projector_lr": 2e-05, "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "google/siglip-so400m-patch14-384",
              "model_type": "bunny-phi", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
              "pad_token_id": 50256, "partial_rotary_factor": 0.4, "qk_layernorm": False, "resid_pdrop": 0.1,
              "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False, "tokenizer_model_max_length": 2048,
              "tokenizer_padding_side": "right", "torch_dtype": "float16", "transformers_version": "4.36.2",
              "tune_mm_mlp_adapter": False, "use_cache": True, "use_mm_proj": True, "vocab_size": 50295}
    keep = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
    with torch.device("meta"):
        phi = PhiForCausalLM(PhiConfig(**{k: config[k] for k in keep}, rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}))
        tower = SiglipVisionModel(SiglipVisionConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
                                                     num_attention_heads=16, image_size=384, patch_size=14))
    w = shapes(phi)
    prefix = "model.vision_tower.vision_tower.vision_model."
    for k, s in shapes(tower).items():
        k = re.sub(r"^vision_model\.", "", k)
        if not k.startswith("head.") and ".layers.26." not in k:
            w[prefix + k] = s
    w.update({"model.mm_projector.0.weight": (2560, 1152), "model.mm_projector.0.bias": (2560,),
              "model.mm_projector.2.weight": (2560, 2560), "model.mm_projector.2.bias": (2560,)})
    write("BAAI/Bunny-v1_0-3B", config, w, [prefix + "post_layernorm.*"], image_rows=729, vision_layers=26, decoder_layers=32,
          context=2048)


def blip2():
    """f32, with the picture token of 2024 and the head beside the embeddings that it is tied to."""
    config = {"architectures": ["Blip2ForConditionalGeneration"], "image_text_hidden_size": 256, "image_token_index": 50265,
              "initializer_factor": 1.0, "initializer_range": 0.02, "model_type": "blip-2", "num_query_tokens": 32,
              "qformer_config": {"classifier_dropout": None, "model_type": "blip_2_qformer"},
              "text_config": {"_name_or_path": "facebook/opt-2.7b", "activation_dropout": 0.0, "architectures": ["OPTForCausalLM"],
                              "eos_token_id": 50118, "ffn_dim": 10240, "hidden_size": 2560, "model_type": "opt",
                              "num_attention_heads": 32, "num_hidden_layers": 32, "prefix": "</s>", "torch_dtype": "float16",
                              "vocab_size": 50304, "word_embed_proj_dim": 2560},
              "torch_dtype": "float32", "use_decoder_only_language_model": True,
              "vision_config": {"dropout": 0.0, "initializer_factor": 1.0, "model_type": "blip_2_vision_model", "num_channels": 3,
                                "projection_dim": 512}}
    text = {k: v for k, v in config["text_config"].items() if k not in ("architectures", "_name_or_path", "torch_dtype", "prefix")}
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(Blip2Config(text_config=text))
    write("Salesforce/blip2-opt-2.7b", config, shapes(model), ["language_model.lm_head.weight"], dtype=lambda name: "F32",
          image_rows=32, vision_layers=39, decoder_layers=32, context=2048)


def minigpt4():
    """The folder that tools/convert/minigpt4.py writes."""
    config = {"model_type": "minigpt4", "num_query_tokens": 32,
              "vision_config": {"model_type": "blip_2_vision_model", "hidden_size": 1408, "hidden_act": "gelu", "image_size": 224,
                                "patch_size": 14, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
                                "layer_norm_eps": 1e-6, "post_layernorm_eps": 1e-5, "qkv_bias": True},
              "qformer_config": {"model_type": "blip_2_qformer", "hidden_size": 768, "hidden_act": "gelu", "num_hidden_layers": 12,
                                 "num_attention_heads": 12, "cross_attention_frequency": 2, "layer_norm_eps": 1e-12,
                                 "intermediate_size": 3072, "encoder_hidden_size": 1408},
              "text_config": {"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
                              "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32,
                              "num_hidden_layers": 32, "rms_norm_eps": 1e-06, "torch_dtype": "float16", "vocab_size": 32000}}
    text = {k: v for k, v in config["text_config"].items() if k not in ("architectures", "model_type", "torch_dtype")}
    with torch.device("meta"):
        model = minigpt4_ref.MiniGPT4({**config, "text_config": text})
    write("minigpt4-7b", config, shapes(model), [], image_rows=32, vision_layers=39, decoder_layers=32, context=2048,
          dtype=lambda name: "F32" if name.startswith("qformer.") or name == "query_tokens" else "F16")


if __name__ == "__main__":
    common = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
              "torch_dtype": "float16", "vocab_size": 32064}
    llava("llava-hf/llava-1.5-7b-hf", {"_name_or_path": "lmsys/vicuna-7b-v1.5", **common}, decoder_layers=32, context=4096)
    llava("llava-hf/llava-1.5-13b-hf", {"_name_or_path": "lmsys/vicuna-13b-v1.5", **common, "hidden_size": 5120,
                                        "intermediate_size": 13824, "num_attention_heads": 40, "num_hidden_layers": 40,
                                        "num_key_value_heads": 40}, decoder_layers=40, context=4096)
    bunny()
    blip2()
    minigpt4()
