"""The LLaVA and Llama forward pass in one file of plain tensor operations, no transformers.

The second of three descriptions of the model (docs/models/llava.md, this file, the C code). It reads a checkpoint
folder in any of the known layouts and returns every state under the name that `chiasm capture` gives it. In float64
it tells how far float32 itself is from the exact result.
"""
import json
import pathlib
import re

import torch
from safetensors import safe_open

RENAME = [  # on disk -> canonical; the first that matches wins
    (r"^model\.language_model\.", "decoder."),            # transformers >= 4.52 in memory
    (r"^language_model\.model\.", "decoder."),            # older, and what 5.x writes by default
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(model\.)?vision_tower\.(vision_model\.)?", "vision."),
    (r"^(model\.)?multi_modal_projector\.", "projector."),
    (r"^model\.", "decoder."),                            # text-only Llama
]


def canonical(name):
    for pattern, new in RENAME:
        out, n = re.subn(pattern, new, name)
        if n:
            return out
    return name


class Plain:
    def __init__(self, folder, dtype=torch.float64):
        folder = pathlib.Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.w = {}
        for file in sorted(folder.glob("model*.safetensors")):
            with safe_open(str(file), "pt") as f:
                for name in f.keys():
                    t = f.get_tensor(name)
                    if t.is_floating_point():  # older files also keep integer position_ids
                        self.w[canonical(name)] = t.to(dtype)
        self.dtype = dtype
        self.llava = self.config["model_type"] == "llava"
        self.text = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "head_dim": None, "num_key_value_heads": None,
                     **(self.config["text_config"] if self.llava else self.config)}
        self.vision = {"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu", **self.config.get("vision_config", {})}
        if "lm_head.weight" not in self.w:
            self.w["lm_head.weight"] = self.w["decoder.embed_tokens.weight"]

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        bias = self.w.get(name + ".bias")
        return y if bias is None else y + bias

    def layernorm(self, x, name, eps):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self.w[name + ".weight"] + self.w[name + ".bias"]

    def rmsnorm(self, x, name):
        r = (x.square().mean(-1, keepdim=True) + self.text["rms_norm_eps"]).sqrt()
        return x / r * self.w[name + ".weight"]

    @staticmethod
    def act(x, kind):
        if kind == "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        if kind == "gelu":
            return 0.5 * x * (1 + torch.erf(x / 2 ** 0.5))
        if kind == "gelu_pytorch_tanh":
            return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x ** 3)))
        assert kind == "silu", kind
        return x * torch.sigmoid(x)

    @staticmethod
    def attend(q, k, v, heads, kv_heads, causal):
        """[T, heads*hd], [T, kv*hd] x 2 -> head_out [T, heads*hd], pattern [heads, T, T]."""
        n, hd = q.shape[0], q.shape[1] // heads
        qh = q.view(n, heads, hd)
        kh = k.view(n, kv_heads, hd).repeat_interleave(heads // kv_heads, 1)
        vh = v.view(n, kv_heads, hd).repeat_interleave(heads // kv_heads, 1)
        s = torch.einsum("qhd,khd->hqk", qh, kh) / hd ** 0.5
        if causal:
            s = s.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        p = s.softmax(-1)
        return torch.einsum("hqk,khd->qhd", p, vh).reshape(n, heads * hd), p

    def vision_layers(self):
        """(how many layers run, which hidden states are taken) for vision_feature_layer; state 0 = after pre-LN."""
        n = self.vision["num_hidden_layers"]
        pick = self.config.get("vision_feature_layer", -2)
        pick = [p if p >= 0 else n + 1 + p for p in (pick if isinstance(pick, list) else [pick])]
        return max(pick), pick

    def see(self, pixels, states):
        c, w = self.vision, self.w
        d, ps, heads = c["hidden_size"], c["patch_size"], c["num_attention_heads"]
        g = c["image_size"] // ps
        x = torch.as_tensor(pixels).to(self.dtype)
        patches = x.view(3, g, ps, g, ps).permute(1, 3, 0, 2, 4).reshape(g * g, 3 * ps * ps)
        x = torch.cat([w["vision.embeddings.class_embedding"][None],
                       patches @ w["vision.embeddings.patch_embedding.weight"].view(d, -1).T])
        x = x + w["vision.embeddings.position_embedding.weight"]
        states["vision.embed"] = x
        x = self.layernorm(x, "vision.pre_layrnorm", c["layer_norm_eps"])
        count, pick = self.vision_layers()
        hidden = [x]
        for i in range(count):
            p, o = f"vision.encoder.layers.{i}.", f"vision.{i}."
            states[o + "resid_pre"] = x
            y = self.layernorm(x, p + "layer_norm1", c["layer_norm_eps"])
            q, k, v = (self.linear(y, p + f"self_attn.{m}_proj") for m in "qkv")
            h, pattern = self.attend(q, k, v, heads, heads, False)
            a = self.linear(h, p + "self_attn.out_proj")
            mid = x + a
            m = self.act(self.linear(self.layernorm(mid, p + "layer_norm2", c["layer_norm_eps"]), p + "mlp.fc1"),
                         c["hidden_act"])
            y = self.linear(m, p + "mlp.fc2")
            x = mid + y
            hidden.append(x)
            for site, t in zip("q k v pattern head_out attn_out resid_mid mlp_act mlp_out resid_post".split(),
                               (q, k, v, pattern, h, a, mid, m, y, x)):
                states[o + site] = t
        drop = 1 if self.config.get("vision_feature_select_strategy", "default") == "default" else 0
        x = torch.cat([hidden[i][drop:] for i in pick], -1)
        x = self.act(self.linear(x, "projector.linear_1"), self.config.get("projector_hidden_act", "gelu"))
        states["projector.0.mlp_act"] = x
        x = self.linear(x, "projector.linear_2")
        states["projector.0.mlp_out"] = x
        states["decoder.image_embed"] = x
        return x

    def rope(self, n, hd):
        """cos, sin [n, hd/2]. inv_freq and angles in float32, as the published models are run."""
        r = self.text.get("rope_parameters") or {}
        old = self.text.get("rope_scaling") or {}
        theta = r.get("rope_theta", self.text.get("rope_theta", 10000.0))
        kind = r.get("rope_type", old.get("rope_type", old.get("type", "default")))
        factor = {"default": 1.0, "linear": r.get("factor", old.get("factor"))}[kind]
        inv = 1.0 / (theta ** (torch.arange(0, hd, 2, dtype=torch.float32) / hd))
        inv = inv / factor
        angle = torch.arange(n, dtype=torch.float32)[:, None] * inv
        return angle.to(self.dtype).cos(), angle.to(self.dtype).sin()

    @staticmethod
    def rotate(x, heads, cos, sin):
        n, half = cos.shape
        a, b = x.view(n, heads, 2, half).unbind(2)
        c, s = cos[:, None], sin[:, None]
        return torch.stack([a * c - b * s, b * c + a * s], 2).reshape(n, -1)

    def run(self, ids, pixels=None, edit=None):
        """Expanded ids [T] -> states, logits last. edit(name, tensor): called at every decoder state that the next
        one is computed from (embed, q, k, v, head_out, attn_out, mlp_out, resid_post); may change it in place."""
        edit = edit or (lambda name, t: None)
        states, c = {}, self.text
        ids = torch.as_tensor(ids).long()
        x = self.w["decoder.embed_tokens.weight"][ids]
        if pixels is not None:
            rows = ids == self.config.get("image_token_index", self.config.get("image_token_id"))
            x[rows] = self.see(pixels, states)
        heads = c["num_attention_heads"]
        kv = c["num_key_value_heads"] or heads
        hd = c["head_dim"] or c["hidden_size"] // heads
        cos, sin = self.rope(len(ids), hd)
        edit("decoder.embed", x)
        states["decoder.embed"] = x
        for i in range(c["num_hidden_layers"]):
            p, o = f"decoder.layers.{i}.", f"decoder.{i}."
            states[o + "resid_pre"] = x
            y = self.rmsnorm(x, p + "input_layernorm")
            q, k, v = (self.linear(y, p + f"self_attn.{m}_proj") for m in "qkv")
            q, k = self.rotate(q, heads, cos, sin), self.rotate(k, kv, cos, sin)
            for site, t in (("q", q), ("k", k), ("v", v)):
                edit(o + site, t)
            h, pattern = self.attend(q, k, v, heads, kv, True)
            edit(o + "head_out", h)
            a = self.linear(h, p + "self_attn.o_proj")
            edit(o + "attn_out", a)
            mid = x + a
            y = self.rmsnorm(mid, p + "post_attention_layernorm")
            m = self.act(self.linear(y, p + "mlp.gate_proj"), c["hidden_act"]) * self.linear(y, p + "mlp.up_proj")
            y = self.linear(m, p + "mlp.down_proj")
            edit(o + "mlp_out", y)
            x = mid + y
            edit(o + "resid_post", x)
            for site, t in zip("q k v pattern head_out attn_out resid_mid mlp_act mlp_out resid_post".split(),
                               (q, k, v, pattern, h, a, mid, m, y, x)):
                states[o + site] = t
        x = self.rmsnorm(x, "decoder.norm")
        states["decoder.final_norm"] = x
        states["logits"] = self.linear(x, "lm_head")
        return states
