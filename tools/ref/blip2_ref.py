"""Every state of a BLIP-2 or MiniGPT-4 model, by hooks on transformers' own modules, named as `chiasm capture` names them."""
import json
import pathlib

import torch
from transformers import Blip2ForConditionalGeneration

import capture_ref
import minigpt4_ref


def load(folder, dtype=torch.float32):
    kind = json.loads((pathlib.Path(folder) / "config.json").read_text())["model_type"]
    if kind == "minigpt4":
        return minigpt4_ref.load(folder, dtype)
    return Blip2ForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def picture_id(model):
    return minigpt4_ref.PICTURE if isinstance(model, minigpt4_ref.MiniGPT4) else model.config.image_token_id


def embed(model, ids, pixels=None):
    """Expanded ids -> merged input embeddings [1, T, d], by another way than the model's own forward."""
    ids = torch.as_tensor(ids)[None].long()
    rows = ids[0] == picture_id(model)
    with torch.no_grad():
        x = model.language_model.get_input_embeddings()(ids.clamp(min=0)).clone()
        if pixels is not None:
            pixels = torch.as_tensor(pixels)[None].to(x.dtype)
            x[0, rows] = (model.picture_rows(pixels) if isinstance(model, minigpt4_ref.MiniGPT4)
                          else model.get_image_features(pixels).pooler_output)[0]
    return x


class Capture(capture_ref.Capture):
    """The decoder by capture_ref; tower, Q-Former and projection here."""

    def __init__(self, whole):
        super().__init__(whole.language_model)
        self.whole = whole

    def eager_parts(self, library, own, cross):
        plain = library.eager_attention_forward

        def wrapped(module, query, key, value, *mask, **kwargs):
            y, p = plain(module, query, key, value, *mask, **kwargs)
            name = own.get(id(module)) or cross[id(module)]
            self.put(name + "q", query.transpose(1, 2).flatten(2))
            self.put(name + "pattern", p)
            if id(module) in own:
                self.put(name + "k", key.transpose(1, 2).flatten(2))
                self.put(name + "v", value.transpose(1, 2).flatten(2))
            return y, p

        self.saved.append((library, plain))
        library.eager_attention_forward = wrapped

    def __enter__(self):
        super().__enter__()
        m, own, cross = self.whole, {}, {}
        self.handles.append(capture_ref.decoder(m.language_model).register_forward_pre_hook(
            lambda _, args, kwargs: self.put("decoder.embed", kwargs["inputs_embeds"]), with_kwargs=True))
        self.out(m.vision_model.embeddings, "vision.embed")
        for i, b in enumerate(m.vision_model.encoder.layers):
            own[id(b.self_attn)] = f"vision.{i}."
            self.layer(b, f"vision.{i}.", b.self_attn.projection, b.layer_norm2, b.mlp.fc2)
        self.final_vision()
        self.arg(m.qformer.layernorm, "qformer.embed")
        for i, b in enumerate(m.qformer.encoder.layer):
            name = f"qformer.{i}."
            own[id(b.attention.attention)] = name
            self.arg(b, name + "resid_pre")
            self.arg(b.attention.output.dense, name + "head_out")
            self.out(b.attention.output.dense, name + "attn_out")
            self.out(b.attention.output.LayerNorm, name + "resid_mid")
            if b.has_cross_attention:
                cross[id(b.crossattention.attention)] = name + "x_"
                self.arg(b.crossattention.output.dense, name + "x_head_out")
                self.out(b.crossattention.output.dense, name + "x_attn_out")
                self.out(b.crossattention.output.LayerNorm, name + "x_resid_mid")
            self.arg(b.output_query.dense, name + "mlp_act")
            self.out(b.output_query.dense, name + "mlp_out")
            self.out(b, name + "resid_post")
        self.eager_parts(capture_ref.library(m.vision_model), own, cross)
        projection = m.llama_proj if isinstance(m, minigpt4_ref.MiniGPT4) else m.language_projection
        self.out(projection, "projector.0.mlp_out")
        self.out(projection, "decoder.image_embed")
        return self

    def final_vision(self):
        """post_layernorm runs twice, on all rows and on the pooled row: the first is the one that is used."""
        def hook(_, args, y):
            if y.dim() == 3:
                self.put("vision.final_norm", y)
        self.handles.append(self.whole.vision_model.post_layernorm.register_forward_hook(hook))


@torch.no_grad()
def capture(model, ids, pixels):
    inputs = {"input_ids": torch.as_tensor(ids)[None].long(),
              "pixel_values": torch.as_tensor(pixels)[None].to(model.llama_proj.weight.dtype if hasattr(model, "llama_proj")
                                                              else model.language_projection.weight.dtype)}
    with Capture(model) as c:
        out = model(**inputs)
    s = c.states
    rows = inputs["input_ids"][0] == picture_id(model)
    assert torch.equal(s["decoder.embed"][rows], s["decoder.image_embed"])
    assert torch.equal(s["decoder.embed"], embed(model, ids, pixels)[0].float())
    assert torch.equal(out.logits[0].float(), s["logits"])
    last = len(model.qformer.encoder.layer) - 1
    assert torch.equal(s[f"qformer.{last}.resid_post"].to(c.whole.qformer.layernorm.weight.dtype).float(),
                       s[f"qformer.{last}.resid_post"])
    return s


@torch.no_grad()
def greedy(model, ids, pixels, count):
    """`count` new ids by plain argmax, from the key/value cache and by whole forward passes; and the smallest gap between
    the best and the second best logit."""
    lm, x = model.language_model, embed(model, ids, pixels)
    out, new, gap = lm(inputs_embeds=x, use_cache=True), [], float("inf")
    for _ in range(count):
        top = out.logits[0, -1].topk(2)
        new.append(int(top.indices[0]))
        gap = min(gap, float(top.values[0] - top.values[1]))
        out = lm(input_ids=torch.tensor([[new[-1]]]), past_key_values=out.past_key_values, use_cache=True)
    if picture_id(model) in new:
        return new, 0.0
    whole = list(ids)
    for _ in range(count):
        whole.append(int(model(input_ids=torch.tensor([whole]), pixel_values=torch.as_tensor(pixels)[None].to(x.dtype)).logits[0, -1].argmax()))
    assert whole[len(ids):] == new
    return new, gap
