"""The demo model: transformers' own LLaVA with small numbers, and its training view."""
import torch
from torch import nn
from transformers import (AttentionInterface, CLIPVisionConfig, LlamaConfig, LlavaConfig,
                          LlavaForConditionalGeneration)

IMAGE, PATCH = 88, 8
NEAR, EARLY = 2, 5   # decoder layers before the states that training looks at
PATCHES = (IMAGE // PATCH) ** 2
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def plain_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Attention as two matrix products: on a CPU, with short rows and narrow
    heads, over twice as fast as the fused kernels, forward and backward."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain", plain_attention)


def config(tok):
    """The configuration; its sizes are explained in the model card."""
    ids = {s: tok.token_to_id(s) for s in ("<s>", "</s>", "<pad>", "<image>")}
    vision = CLIPVisionConfig(
        hidden_size=160, intermediate_size=512, projection_dim=160, num_hidden_layers=6,
        num_attention_heads=5, image_size=IMAGE, patch_size=PATCH, hidden_act="quick_gelu")
    text = LlamaConfig(
        vocab_size=tok.get_vocab_size(), hidden_size=192, intermediate_size=512,
        num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=3, head_dim=32,
        max_position_embeddings=512, rms_norm_eps=1e-5, hidden_act="silu",
        bos_token_id=ids["<s>"], eos_token_id=ids["</s>"], pad_token_id=ids["<pad>"],
        tie_word_embeddings=True)
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=ids["<image>"],
        image_token_id=ids["<image>"], image_seq_length=PATCHES, projector_hidden_act="gelu",
        vision_feature_layer=-2, vision_feature_select_strategy="default",
        multimodal_projector_bias=True, tie_word_embeddings=True)


class Trainee(nn.Module):
    """The Llava model with the forward passes that training needs.

    Linear heads on the tower's features name, for each patch, the flag or the
    shape and colour that covers it, and its half of the picture; they are dropped
    at export.
    """

    def __init__(self, llava, countries=0, shapes=0, colors=0):
        super().__init__()
        self.llava = llava
        self.llava.set_attn_implementation("plain")
        width = llava.config.vision_config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, n + 1)
                                   for n in (countries, shapes, colors, 2))
        self.states = {}
        for depth in (NEAR, EARLY):
            llava.model.language_model.layers[depth - 1].register_forward_hook(
                lambda module, inputs, output, depth=depth: self.states.update({depth: output}))
        mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
        self.register_buffer("shift", mean.view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", std.view(1, 3, 1, 1) * 255, persistent=False)

    def see(self, pixels):
        """uint8 pictures (n, h, w, 3) -> tower features (n, patches, width)."""
        x = pixels.permute(0, 3, 1, 2).to(self.shift.dtype)
        x = (x - self.shift) / self.scale
        return self.llava.model.vision_tower(
            x, output_hidden_states=True).hidden_states[-2][:, 1:]

    def read(self, ids, positions, mask, features=None, image_at=0):
        """Token rows -> last hidden states; the first rows hold the pictures."""
        embeds = self.llava.model.language_model.embed_tokens(ids)
        if features is not None:
            n, k = features.shape[:2]
            visual = self.llava.model.multi_modal_projector(features).to(embeds.dtype)
            self.visual = visual
            head = torch.cat([embeds[:n, :image_at], visual, embeds[:n, image_at + k:]], 1)
            embeds = torch.cat([head, embeds[n:]], 0)
        bias = torch.zeros(mask.shape, dtype=embeds.dtype).masked_fill_(~mask, -1e9)
        return self.llava.model.language_model(
            inputs_embeds=embeds, position_ids=positions, attention_mask=bias,
            use_cache=False).last_hidden_state

    def logits_at(self, depth, where):
        """What the state after `depth` layers would answer, were it the last."""
        state = self.states[depth]
        state = state.reshape(-1, state.shape[-1])[where]
        return self.llava.lm_head(self.llava.model.language_model.norm(state))

    def named_logits(self):
        """Which words the picture's tokens are like as they enter the decoder."""
        first = self.llava.model.language_model.layers[0].input_layernorm
        return self.llava.lm_head(first(self.visual))

    def answer_logits(self, hidden, where):
        return self.llava.lm_head(hidden.reshape(-1, hidden.shape[-1])[where])
