"""Every state of a transformers model, by hooks on its own modules, named as `chiasm capture` names them."""
import importlib
import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

# How each decoder calls its modules: layers, attention, output projection, second norm (None: parallel block), last matrix
# of the MLP, final norm, token embeddings where learned positions follow them, q projection where eager attention is
# given q already scaled.
LLAMA = dict(layers="layers", attn="self_attn", o="self_attn.o_proj", norm2="post_attention_layernorm",
             fc2="mlp.down_proj", norm="norm")
DECODERS = {
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA,
    "phi": dict(layers="layers", attn="self_attn", o="self_attn.dense", norm2=None, fc2="mlp.fc2", norm="final_layernorm"),
    "opt": dict(layers="layers", attn="self_attn", o="self_attn.out_proj", norm2="final_layer_norm", fc2="fc2",
                norm="final_layer_norm", embed="embed_tokens", q="self_attn.q_proj"),
    "gpt2": dict(layers="h", attn="attn", o="attn.c_proj", norm2="ln_2", fc2="mlp.c_proj", norm="ln_f", embed="wte"),
}


def load(folder, dtype=torch.float32):
    folder = pathlib.Path(folder)
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    if kind == "bunny-phi":
        import bunny_ref
        model = bunny_ref.load(folder, dtype)
    else:
        cls = LlavaForConditionalGeneration if kind == "llava" else AutoModelForCausalLM
        model = cls.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    for name, part in model.named_modules():
        cfg = getattr(part, "config", None)
        assert cfg is None or cfg._attn_implementation == "eager", name
    return model


def decoder(model):
    """The module that holds the decoder's layers."""
    m = getattr(model, "model", None) or model.transformer
    m = getattr(m, "language_model", m)
    return getattr(m, "decoder", m)


def parts(model):
    """(its row of DECODERS, list of layers, function that finds a module below another by a dotted name)"""
    text = decoder(model)
    row = DECODERS[text.config.model_type]
    return row, getattr(text, row["layers"]), lambda m, name: m.get_submodule(name)


def library(module):
    """The modeling file that a module's class is from: its eager_attention_forward is what runs."""
    return importlib.import_module(type(module).__module__)


class Capture:
    """with Capture(model) as c: model(...)  -> c.states; batch element 0 only."""

    def __init__(self, model):
        self.model, self.states, self.handles, self.saved = model, {}, [], []

    def put(self, name, t):
        t = t.detach()  # OPT flattens batch and rows in its MLP; the batch is 1 here
        self.states[name] = (t[0] if t.dim() > 2 else t).float().clone()

    def out(self, module, name):
        self.handles.append(module.register_forward_hook(
            lambda m, args, kwargs, y: self.put(name, y[0] if isinstance(y, tuple) else y), with_kwargs=True))

    def arg(self, module, name):
        self.handles.append(module.register_forward_pre_hook(
            lambda m, args, kwargs: self.put(name, args[0] if args else kwargs["hidden_states"]), with_kwargs=True))

    def eager(self, library, prefix_of):
        """Wraps the module's eager attention: what it is given is q, k, v after rotary; k, v before repetition."""
        plain = library.eager_attention_forward

        def wrapped(module, query, key, value, mask, **kwargs):
            y, p = plain(module, query, key, value, mask, **kwargs)
            name = prefix_of.get(id(module))
            if name:
                for site, t in (("q", query), ("k", key), ("v", value)):
                    if name + site not in self.states:
                        self.put(name + site, t.transpose(1, 2).flatten(2))
                self.put(name + "pattern", p)
            return y, p

        self.saved.append((library, plain))
        library.eager_attention_forward = wrapped

    def layer(self, block, name, out_proj, norm2, fc2):
        self.arg(block, name + "resid_pre")
        self.arg(out_proj, name + "head_out")
        self.out(out_proj, name + "attn_out")
        if norm2 is not None:
            self.arg(norm2, name + "resid_mid")
        self.arg(fc2, name + "mlp_act")
        self.out(fc2, name + "mlp_out")
        self.out(block, name + "resid_post")

    def __enter__(self):
        text, names = decoder(self.model), {}
        row, layers, find = parts(self.model)
        for i, b in enumerate(layers):
            attn = find(b, row["attn"])
            names[id(attn)] = f"decoder.{i}."
            if "q" in row:
                self.out(find(b, row["q"]), f"decoder.{i}.q")
            self.layer(b, f"decoder.{i}.", find(b, row["o"]), row["norm2"] and find(b, row["norm2"]), find(b, row["fc2"]))
        self.eager(library(attn), names)
        if "embed" in row:
            self.out(find(text, row["embed"]), "decoder.embed")
        else:
            self.arg(layers[0], "decoder.embed")
        self.out(find(text, row["norm"]), "decoder.final_norm")
        self.out(self.model.lm_head, "logits")
        if hasattr(getattr(self.model, "model", None), "vision_tower"):
            tower, names = self.model.model.vision_tower, {}
            self.out(tower.embeddings, "vision.embed")
            for i, b in enumerate(tower.encoder.layers):
                names[id(b.self_attn)] = f"vision.{i}."
                self.layer(b, f"vision.{i}.", b.self_attn.out_proj, b.layer_norm2, b.mlp.fc2)
            self.eager(library(b.self_attn), names)
            projector = self.model.model.multi_modal_projector
            self.arg(projector.linear_2, "projector.0.mlp_act")
            self.out(projector.linear_2, "projector.0.mlp_out")
            self.out(projector, "decoder.image_embed")
        return self

    def __exit__(self, *_):
        for h in self.handles:
            h.remove()
        for library, plain in self.saved:
            library.eager_attention_forward = plain


def needed_vision_layers(config):
    n = config.vision_config.num_hidden_layers
    pick = config.vision_feature_layer
    return max(p if p >= 0 else n + 1 + p for p in (pick if isinstance(pick, (list, tuple)) else [pick]))


@torch.no_grad()
def capture(model, ids, pixels=None):
    """Expanded ids [T], pixels [3, h, w] -> states; vision layers above the feature layer are left out. The states are
    compared with what the model itself reports."""
    inputs = {"input_ids": torch.as_tensor(ids)[None].long()}
    if pixels is not None:
        inputs["pixel_values"] = torch.as_tensor(pixels)[None].to(model.dtype)
    with Capture(model) as c:
        out = model(**inputs, output_hidden_states=True, output_attentions=True, use_cache=False)
    s = c.states
    row, layers, _ = parts(model)
    for i in range(len(layers)):
        if row["norm2"] is None:  # attention and MLP side by side: the sum is never made, so make it
            s[f"decoder.{i}.resid_mid"] = s[f"decoder.{i}.resid_pre"] + s[f"decoder.{i}.attn_out"]
    if pixels is not None:
        top = needed_vision_layers(model.config)
        s = {k: v for k, v in s.items() if not (k.startswith("vision.") and k.split(".")[1].isdigit()
                                                and int(k.split(".")[1]) >= top)}
    n = len(out.hidden_states) - 1  # transformers: embeddings, then block outputs, the last one after the final norm
    for i in range(n):
        want = s[f"decoder.{i}.resid_pre"]
        assert torch.equal(out.hidden_states[i][0].float(), want), i
        assert torch.equal(out.attentions[i][0].float(), s[f"decoder.{i}.pattern"]), i
    assert torch.equal(out.hidden_states[n][0].float(), s["decoder.final_norm"])
    assert torch.equal(out.logits[0].float(), s["logits"])
    if pixels is not None:
        rows = inputs["input_ids"][0] == model.config.image_token_id
        assert torch.equal(s["decoder.embed"][rows], s["decoder.image_embed"])
        tower = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        for i in range(top):
            assert torch.equal(tower.hidden_states[i][0].float(), s[f"vision.{i}.resid_pre"]), i
            assert torch.equal(tower.hidden_states[i + 1][0].float(), s[f"vision.{i}.resid_post"]), i
    return s


@torch.no_grad()
def greedy(model, ids, pixels, count):
    """`count` new ids by plain argmax (end of text is a token like any other), twice: from the key/value cache and by
    whole forward passes. Also the smallest gap between the best and the second best logit."""
    ids = torch.as_tensor(ids)[None].long()
    extra = {} if pixels is None else {"pixel_values": torch.as_tensor(pixels)[None].to(model.dtype)}
    out = model(input_ids=ids, use_cache=True, **extra)
    cached, gap = [], float("inf")
    for _ in range(count):
        top = out.logits[0, -1].topk(2)
        cached.append(int(top.indices[0]))
        gap = min(gap, float(top.values[0] - top.values[1]))
        out = model(input_ids=torch.tensor([[cached[-1]]]), past_key_values=out.past_key_values, use_cache=True)
    whole, never = ids, getattr(model.config, "image_token_id", -1)
    if never in cached:
        return cached, 0.0
    for _ in range(count):
        y = model(input_ids=whole, use_cache=False, **extra).logits[0, -1].argmax()
        whole = torch.cat([whole, y.view(1, 1)], 1)
    assert whole[0, ids.shape[1]:].tolist() == cached
    return cached, gap
