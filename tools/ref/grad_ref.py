"""Gradients of every family by PyTorch autograd in f32: tests/fixtures/grad/gradients.safetensors.

    python tools/ref/grad_ref.py

Loss: -log p of token 9 behind the last row and of token 11 behind the row three before, of the first prompt of each fixture
folder (its states.safetensors holds ids and pixels). Stored is G R for each gradient G [rows][columns], with
R[j][c] = sin(1 + 12.9898 j + 78.233 c), c < 6: an error in any element moves it. Names: <family>/<what>.
Versions: torch 2.13.0, transformers 5.23.0 (tools/ref/requirements.txt).
"""
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import blip2_ref
import capture_ref
from common import FIXTURES

FAMILIES = ["tiny-gqa", "tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-phi", "tiny-opt", "tiny-gpt2", "tiny-bunny",
            "tiny-llava-qwen2", "tiny-llava-mistral", "tiny-blip2", "tiny-minigpt4"]
LOSS = [(-1, 9), (-4, 11)]
COLUMNS = 6


def sketch(g):
    g = g.detach().double()
    g = g.reshape(-1, g.shape[-1])
    j, c = torch.arange(g.shape[1]).double()[:, None], torch.arange(COLUMNS).double()[None]
    return (g @ torch.sin(1 + 12.9898 * j + 78.233 * c)).float().contiguous()


class Taps:
    def __init__(self):
        self.kept, self.weights, self.handles = {}, {}, []

    def keep(self, name, t):
        if name not in self.kept:  # BLIP-2 runs its last norm twice
            t.retain_grad()
            self.kept[name] = t

    def out(self, name, module):
        def hook(_, args, y):
            t = y[0] if isinstance(y, tuple) else y
            if not t.requires_grad:
                t = t.requires_grad_(True)
            self.keep(name, t)
            return (t, *y[1:]) if isinstance(y, tuple) else t
        self.handles.append(module.register_forward_hook(hook))

    def embeds(self, name, module):
        def hook(_, args, kwargs):
            if kwargs.get("inputs_embeds") is None:
                return None
            t = kwargs["inputs_embeds"]
            self.keep(name, t if t.requires_grad else t.requires_grad_(True))
            return args, kwargs
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def weight(self, name, module):
        module.weight.requires_grad_(True)
        self.weights[name] = module

    def close(self):
        for h in self.handles:
            h.remove()


def tap(model, t):
    """The sites and weights that are compared, by the library's names."""
    lm = model.language_model if hasattr(model, "qformer") else model
    row, layers, sub = capture_ref.parts(lm)
    text = capture_ref.decoder(lm)
    for i in (0, len(layers) - 1):
        t.out(f"decoder.{i}.mlp_out", sub(layers[i], row["fc2"]))
        t.out(f"decoder.{i}.attn_out", sub(layers[i], row["o"]))
    t.weight("w.decoder.1.down", sub(layers[1], row["fc2"]))
    t.weight("w.decoder.1.o", sub(layers[1], row["o"]))
    inner = model.model if hasattr(model, "model") and not hasattr(model, "qformer") else model
    tower = getattr(model, "vision_model", None) or getattr(inner, "vision_tower", None)
    if tower is None:
        t.out("decoder.embed", text.get_input_embeddings())
        return
    t.embeds("decoder.embed", text)
    tower = getattr(tower, "vision_model", tower)
    t.out("vision.embed", tower.embeddings)
    block = tower.encoder.layers[0]
    t.out("vision.0.mlp_out", block.mlp.fc2)
    t.weight("w.vision.0.down", block.mlp.fc2)
    if hasattr(model, "qformer"):
        b = model.qformer.encoder.layer[0]
        t.out("qformer.0.attn_out", b.attention.output.dense)
        t.out("qformer.0.x_attn_out", b.crossattention.output.dense)
        t.out("qformer.0.mlp_out", b.output_query.dense)
        t.weight("w.qformer.0.q", b.attention.attention.query)
        t.weight("w.qformer.0.up", b.intermediate_query.dense)
        t.weight("w.projector.0.proj1", model.llama_proj if hasattr(model, "llama_proj") else model.language_projection)
    elif hasattr(inner, "multi_modal_projector"):
        t.weight("w.projector.0.proj1", inner.multi_modal_projector.linear_1)
        t.weight("w.projector.0.proj2", inner.multi_modal_projector.linear_2)


def family(name):
    folder = FIXTURES / name
    q = name in ("tiny-blip2", "tiny-minigpt4")
    model = blip2_ref.load(folder) if q else capture_ref.load(folder)
    for p in model.parameters():
        p.requires_grad_(False)
    with safe_open(str(folder / "states.safetensors"), "pt") as f:
        ids = f.get_tensor("input_ids").long()
        pixels = f.get_tensor("pixel_values").float()[None] if "pixel_values" in f.keys() else None
    t = Taps()
    tap(model, t)
    if name == "tiny-bunny":  # its picture token is no row of the embeddings
        x = model.get_input_embeddings()(ids.clamp(min=0))[None]
        rows = model.get_image_features(pixels).pooler_output
        out = model(inputs_embeds=x.masked_scatter((ids < 0)[None, :, None], rows))
    else:
        out = model(input_ids=ids[None], **({"pixel_values": pixels} if pixels is not None else {}))
    logp = torch.log_softmax(out.logits[0].float(), -1)
    loss = -sum(logp[row, token] for row, token in LOSS)
    loss.backward()
    t.close()
    got = {f"{name}/loss": loss.detach().reshape(1)}
    for k, v in t.kept.items():
        got[f"{name}/{k}"] = sketch(v.grad)
    for k, m in t.weights.items():
        g = m.weight.grad
        got[f"{name}/{k}"] = sketch(g.T if type(m).__name__ == "Conv1D" else g)
    return got


def main():
    torch.set_num_threads(1)
    out = {}
    for name in FAMILIES:
        try:
            out |= family(name)
        except Exception as e:
            print(name, "failed:", repr(e)[:300])
            raise
        print(name, len(out))
    (FIXTURES / "grad").mkdir(exist_ok=True)
    save_file(out, str(FIXTURES / "grad" / "gradients.safetensors"),
              metadata={"made_by": "tools/ref/grad_ref.py", "torch": torch.__version__})


if __name__ == "__main__":
    main()
