"""The demo model: transformers' own LLaVA with small numbers, and its training view.

The weights are those of LlavaForConditionalGeneration and are exported as such.
For training, the layers are computed by two functions of our own: the same
formulas, but packed rows with a mask of their own, states of middle layers at
hand, and simple enough for torch.compile to fuse.
"""
import torch
from torch import nn
from torch.nn.functional import layer_norm, linear, silu
from transformers import (CLIPVisionConfig, LlamaConfig, LlavaConfig,
                          LlavaForConditionalGeneration)

IMAGE, PATCH = 88, 8
NEAR, EARLY = 3, 5   # decoder layers before the states that training looks at
PATCHES = (IMAGE // PATCH) ** 2
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DENSE = ("flag", "shape", "color", "side")   # what the heads on the tower name


def config(tok):
    """The configuration; its sizes are explained in the model card."""
    ids = {s: tok.token_to_id(s) for s in ("<s>", "</s>", "<pad>", "<image>")}
    vision = CLIPVisionConfig(
        hidden_size=160, intermediate_size=512, projection_dim=160, num_hidden_layers=6,
        num_attention_heads=5, image_size=IMAGE, patch_size=PATCH, hidden_act="quick_gelu")
    text = LlamaConfig(
        vocab_size=tok.get_vocab_size(), hidden_size=192, intermediate_size=512,
        num_hidden_layers=12, num_attention_heads=6, num_key_value_heads=3, head_dim=32,
        max_position_embeddings=512, rms_norm_eps=1e-5, hidden_act="silu",
        bos_token_id=ids["<s>"], eos_token_id=ids["</s>"], pad_token_id=ids["<pad>"],
        tie_word_embeddings=True)
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=ids["<image>"],
        image_token_id=ids["<image>"], image_seq_length=PATCHES, projector_hidden_act="gelu",
        vision_feature_layer=-2, vision_feature_select_strategy="default",
        multimodal_projector_bias=True, tie_word_embeddings=True)


def rms(x, weight, eps):
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def turn(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def decoder_layer(x, cos, sin, bias, heads, kv_heads, eps, first, q, k, v, o, second, gate, up,
                  down):
    """One Llama layer; `bias` (rows, 1, 1, length, length) is added to the scores."""
    rows, length, width = x.shape
    deep = width // heads
    h = rms(x, first, eps)
    query = turn(linear(h, q).view(rows, length, heads, deep).transpose(1, 2), cos, sin)
    key = turn(linear(h, k).view(rows, length, kv_heads, deep).transpose(1, 2), cos, sin)
    value = linear(h, v).view(rows, length, kv_heads, deep).transpose(1, 2)
    query = (query * deep ** -0.5).reshape(rows, kv_heads, heads // kv_heads * length, deep)
    scores = (query @ key.transpose(2, 3)).view(rows, kv_heads, heads // kv_heads, length, length)
    share = (scores + bias).float().softmax(-1).to(x.dtype).view(rows, kv_heads, -1, length)
    mixed = (share @ value).view(rows, heads, length, deep).transpose(1, 2)
    x = x + linear(mixed.reshape(rows, length, width), o)
    h = rms(x, second, eps)
    return x + linear(silu(linear(h, gate)) * linear(h, up), down)


def tower_attention(x, heads, eps, w, b, q, qb, k, kb, v, vb, o, ob):
    n, length, width = x.shape
    deep = width // heads
    h = layer_norm(x, (width,), w, b, eps)
    split = lambda t: t.view(n, length, heads, deep).transpose(1, 2)
    query, key, value = split(linear(h, q, qb)), split(linear(h, k, kb)), split(linear(h, v, vb))
    share = ((query * deep ** -0.5) @ key.transpose(2, 3)).float().softmax(-1).to(x.dtype)
    mixed = (share @ value).transpose(1, 2).reshape(n, length, width)
    return x + linear(mixed, o, ob)


def tower_mlp(x, eps, w, b, up, upb, down, downb):
    h = linear(layer_norm(x, (x.shape[-1],), w, b, eps), up, upb)
    return x + linear(h * torch.sigmoid(1.702 * h), down, downb)


def tower_layer(x, heads, eps, attend, attention, mlp):
    if attend:
        x = tower_attention(x, heads, eps, *attention)
    return tower_mlp(x, eps, *mlp)


class Trainee(nn.Module):
    """The Llava model with the forward passes that training needs.

    Linear heads on the tower's features name, for each patch, the flag or the
    shape and colour that covers it, and its half of the picture; two more read
    the entity from a decoder state. None of them is exported.
    `attend` False leaves the attention out of the tower (its output projections
    are zero then, so that an ordinary CLIP computes the same).
    """

    def __init__(self, llava, entities=0, shapes=0, colors=0, attend=True, compiled=False):
        super().__init__()
        self.llava, self.attend = llava, attend
        c, v = llava.config.text_config, llava.config.vision_config
        self.heads = nn.ModuleList(nn.Linear(v.hidden_size, n + 1)
                                   for n in (entities, shapes, colors, 2))
        self.who = nn.ModuleDict({str(d): nn.Linear(c.hidden_size, max(1, entities), bias=False)
                                  for d in (NEAR, EARLY)})
        self.states = {}
        mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
        self.register_buffer("shift", mean.view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", std.view(1, 3, 1, 1) * 255, persistent=False)
        deep = c.head_dim
        self.register_buffer("speed", 10000.0 ** (-torch.arange(0, deep, 2).float() / deep),
                             persistent=False)
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.plain_layer = decoder_layer
        self.decoder_layer, self.tower_layer = wrap(decoder_layer), wrap(tower_layer)
        if not attend:
            with torch.no_grad():
                for layer in llava.model.vision_tower.encoder.layers:
                    layer.self_attn.out_proj.weight.zero_()
                    layer.self_attn.out_proj.bias.zero_()

    def see(self, pixels):
        """uint8 pictures (n, h, w, 3) -> tower features (n, patches, width)."""
        tower, c = self.llava.model.vision_tower, self.llava.config.vision_config
        x = pixels.permute(0, 3, 1, 2).float()
        x = ((x - self.shift.float()) / self.scale.float()).to(tower.pre_layrnorm.weight.dtype)
        x = tower.embeddings(x)
        x = tower.pre_layrnorm(x)
        for layer in tower.encoder.layers[:-1]:
            a, m = layer.self_attn, layer.mlp
            pair = lambda part: (part.weight, part.bias)
            x = self.tower_layer(
                x, c.num_attention_heads, c.layer_norm_eps, self.attend,
                (*pair(layer.layer_norm1), *pair(a.q_proj), *pair(a.k_proj), *pair(a.v_proj),
                 *pair(a.out_proj)),
                (*pair(layer.layer_norm2), *pair(m.fc1), *pair(m.fc2)))
        return x[:, 1:]

    def read(self, ids, positions, mask, features=None, image_at=0, layers=None):
        """Token rows -> last hidden states; with features, every row holds a picture.

        ids, positions (rows, length); mask (rows, length, length), True = sees.
        """
        decoder, c = self.llava.model.language_model, self.llava.config.text_config
        x = decoder.embed_tokens(ids)
        if features is not None:
            visual = self.llava.model.multi_modal_projector(features)
            x = torch.cat([x[:, :image_at], visual, x[:, image_at + visual.shape[1]:]], 1)
        angle = positions[..., None].float() * self.speed.float()
        angle = torch.cat([angle, angle], -1)[:, None]
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        bias = torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(~mask, -1e9)[:, None, None]
        self.states = {}
        for i, layer in enumerate(decoder.layers[:layers]):
            a, m = layer.self_attn, layer.mlp
            x = self.decoder_layer(
                x, cos, sin, bias, c.num_attention_heads, c.num_key_value_heads, c.rms_norm_eps,
                layer.input_layernorm.weight, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight,
                a.o_proj.weight, layer.post_attention_layernorm.weight, m.gate_proj.weight,
                m.up_proj.weight, m.down_proj.weight)
            if i + 1 in (NEAR, EARLY):
                self.states[i + 1] = x
        return decoder.norm(x)

    def at(self, depth, where):
        """States after `depth` layers at flat positions of the last rows read."""
        state = self.states[depth]
        return state.reshape(-1, state.shape[-1])[where]

    def logits_of(self, state):
        """What a state of a middle layer would answer, were it the last."""
        return self.llava.lm_head(self.llava.model.language_model.norm(state))

    def who_of(self, depth, state):
        """Logits over the entities, from a state after `depth` layers."""
        return self.who[str(depth)](rms(state, torch.ones((), dtype=state.dtype), 1e-5))

    def answer_logits(self, hidden, where):
        return self.llava.lm_head(hidden.reshape(-1, hidden.shape[-1])[where])
