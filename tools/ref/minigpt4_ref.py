"""MiniGPT-4 in one file, composed of transformers' own BLIP-2 tower, Q-Former and Llama; reads the folder layout of
docs/models/minigpt4.md.

    python tools/ref/minigpt4_ref.py FOLDER picture.png "What is this?"
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2VisionModel

PICTURE = -200  # stands for a picture row in a list of ids; the tokenizer has no such token


class MiniGPT4(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        vision, qformer, text = (cls(**config[k], attn_implementation="eager") for cls, k in (
            (Blip2VisionConfig, "vision_config"), (Blip2QFormerConfig, "qformer_config"), (LlamaConfig, "text_config")))
        qformer.encoder_hidden_size = vision.hidden_size
        self.vision_model = Blip2VisionModel(vision)
        self.vision_model.post_layernorm.eps = config["vision_config"].get("post_layernorm_eps", vision.layer_norm_eps)
        self.qformer = Blip2QFormerModel(qformer)
        self.query_tokens = nn.Parameter(torch.zeros(1, config["num_query_tokens"], qformer.hidden_size))
        self.llama_proj = nn.Linear(qformer.hidden_size, text.hidden_size)
        self.language_model = LlamaForCausalLM(text)

    def picture_rows(self, pixels):
        """[1, 3, h, w] -> [1, queries, d]; another size than the tower's interpolates its position embeddings."""
        own = self.vision_model.config.image_size
        seen = self.vision_model(pixels, interpolate_pos_encoding=tuple(pixels.shape[2:]) != (own, own)).last_hidden_state
        dtype = self.qformer.layernorm.weight.dtype
        queries = self.qformer(query_embeds=self.query_tokens.to(dtype), encoder_hidden_states=seen.to(dtype)).last_hidden_state
        return self.llama_proj(queries.to(self.llama_proj.weight.dtype))

    def embed(self, ids, pixels=None):
        """ids [1, T], picture rows marked PICTURE -> [1, T, d]"""
        x = self.language_model.get_input_embeddings()(ids.clamp(min=0))
        if pixels is not None:
            x[0, ids[0] == PICTURE] = self.picture_rows(pixels)[0].to(x.dtype)
        return x

    def forward(self, input_ids, pixel_values=None):
        return self.language_model(inputs_embeds=self.embed(input_ids, pixel_values), use_cache=False)


def prompt_ids(tok, queries, question, picture=True):
    """The wrapper of the published code: its three pieces and the question are encoded apart, without BOS."""
    ids = lambda text: tok.encode(text, add_special_tokens=False).ids
    if not picture:
        return ids(question)
    return ids("###Human: <Img>") + [PICTURE] * queries + ids("</Img> ") + ids(question)


def load(folder, dtype=torch.float32):
    folder = pathlib.Path(folder)
    model = MiniGPT4(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(str(folder / "model.safetensors")), strict=True)
    model = model.to(dtype)
    model.qformer.float()  # kept in f32, as in BLIP-2
    return model.eval()


def main(folder, picture, question):
    from PIL import Image
    from tokenizers import Tokenizer

    from common import preprocess, read_json
    model, tok = load(folder), Tokenizer.from_file(f"{folder}/tokenizer.json")
    pixels = torch.as_tensor(preprocess(Image.open(picture), read_json(f"{folder}/preprocessor_config.json")))[None]
    ids = prompt_ids(tok, model.config["num_query_tokens"], question)
    new = []
    with torch.no_grad():
        while len(new) < 30 and new[-1:] != [model.language_model.config.eos_token_id]:
            new.append(int(model(torch.tensor([ids + new]), pixels).logits[0, -1].argmax()))
    print(tok.decode(new))


if __name__ == "__main__":
    main(*sys.argv[1:4])
