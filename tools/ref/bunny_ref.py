"""Bunny-v1_0-3B's forward pass, composed of transformers' own SigLIP tower and Phi decoder, in Bunny's checkpoint layout.

The released model's code is its own; what it computes is: SigLIP without its last layer (no norm after it), all rows, a
projector of two matrices with GELU between, the projected rows in place of the picture token, Phi-2. The modules are named
as in transformers' LLaVA, so that the same hooks serve.
"""
import json
import pathlib
import re
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PhiConfig, PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel

from common import IMAGE, write_json


def cast(model, dtype):
    """Parameters alone: the rotary embedding's frequencies stay in float32, as in a model that is loaded in this dtype."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    return model


class Projector(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)

    def forward(self, x):
        return self.linear_2(nn.functional.gelu(self.linear_1(x)))


class Bunny(nn.Module):
    def __init__(self, text, vision):
        super().__init__()
        text._attn_implementation = vision._attn_implementation = "eager"
        phi = PhiForCausalLM(text)
        tower = SiglipVisionModel(vision)
        self.lm_head = phi.lm_head
        self.model = nn.Module()
        self.model.language_model = phi.model
        self.model.vision_tower = getattr(tower, "vision_model", tower)
        self.model.multi_modal_projector = Projector(vision.hidden_size, text.hidden_size)
        self.text_config = text
        self.config = SimpleNamespace(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-2,
                                      vision_feature_select_strategy="full", tie_word_embeddings=False,
                                      _attn_implementation="eager")

    @property
    def dtype(self):
        return self.lm_head.weight.dtype

    def get_input_embeddings(self):
        return self.model.language_model.embed_tokens

    def get_image_features(self, pixel_values):
        x = self.model.vision_tower.embeddings(pixel_values)
        for layer in self.model.vision_tower.encoder.layers[:-1]:
            y = layer(x, None)
            x = y[0] if isinstance(y, tuple) else y
        return SimpleNamespace(pooler_output=self.model.multi_modal_projector(x))

    def forward(self, input_ids=None, pixel_values=None, inputs_embeds=None, logits_to_keep=0, past_key_values=None, **kwargs):
        x = inputs_embeds
        if x is None:
            x = self.get_input_embeddings()(input_ids)
            if pixel_values is not None:
                x = x.masked_scatter((input_ids == IMAGE)[..., None], self.get_image_features(pixel_values).pooler_output)
        out = self.model.language_model(inputs_embeds=x, past_key_values=past_key_values, **kwargs)
        out.logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        return out


def names(model):
    """Our modules' names -> Bunny's."""
    out = {}
    for k in model.state_dict():
        new = k
        for a, b in ((r"^model\.language_model\.", "model."), (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
                     (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
                     (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2.")):
            new, n = re.subn(a, b, k)
            if n:
                break
        out[k] = new
    return out


def save(model, folder):
    """Bunny leaves out the tower's last layer and its pooling head. vision_config is ours: theirs is written in the code."""
    text, vision = model.text_config, model.config.vision_config
    last = f".encoder.layers.{vision.num_hidden_layers - 1}."
    w = {new: model.state_dict()[k].contiguous() for k, new in names(model).items()
         if last not in new or "vision_tower" not in new}
    w = {k: v for k, v in w.items() if ".head." not in k}
    save_file(w, str(pathlib.Path(folder) / "model.safetensors"), metadata={"format": "pt"})
    c = text.to_dict()
    rope = c.pop("rope_parameters")
    keep = {k: c[k] for k in ("bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps",
                              "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
                              "pad_token_id", "qk_layernorm", "tie_word_embeddings", "vocab_size")}
    write_json(pathlib.Path(folder) / "config.json", {
        "architectures": ["BunnyPhiForCausalLM"], **keep, "freeze_mm_mlp_adapter": False, "image_aspect_ratio": "pad",
        "mm_hidden_size": vision.hidden_size, "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "google/siglip-tiny",
        "model_type": "bunny-phi", "partial_rotary_factor": rope["partial_rotary_factor"], "rope_scaling": None,
        "rope_theta": rope["rope_theta"], "torch_dtype": "float16", "use_mm_proj": True,
        "vision_config": {k: getattr(vision, k) for k in ("hidden_act", "hidden_size", "image_size", "intermediate_size",
                                                          "layer_norm_eps", "num_attention_heads", "num_hidden_layers", "patch_size")}})


def load(folder, dtype=torch.float32):
    folder = pathlib.Path(folder)
    c = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": c.pop("rope_theta"), "partial_rotary_factor": c.pop("partial_rotary_factor")}
    vision = SiglipVisionConfig(**c.pop("vision_config"))
    c.pop("rope_scaling"), c.pop("model_type"), c.pop("torch_dtype")
    model = Bunny(PhiConfig(**c, rope_parameters=rope), vision)
    w = load_file(str(folder / "model.safetensors"))
    missing, unexpected = model.load_state_dict({k: w[new] for k, new in names(model).items() if new in w}, strict=False)
    left = f"vision_tower.encoder.layers.{vision.num_hidden_layers - 1}."
    assert not unexpected and all(left in k or ".head." in k for k in missing), missing
    return cast(model, dtype).eval()
