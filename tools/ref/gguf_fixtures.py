"""Makes tests/fixtures/gguf: small GGUF files, written and read back by the `gguf` package and by transformers.

    python tools/ref/gguf_fixtures.py

Needs gguf==0.19.0 and accelerate==1.15.0 besides requirements.txt.

  quants.gguf, quants.safetensors   every element type that is read; values as gguf.quants gives them
  llama-f16.gguf, llama-q8_0.gguf   a random Llama; llama.safetensors: logits of transformers' own GGUF loading
  qwen2, phi2, gpt2 .gguf           tests/fixtures/tiny-<family> under GGUF names: must give that folder's bits
  llava.gguf, llava-mmproj.gguf     tests/fixtures/tiny-liuhaotian as a pair, in the layout of the published files
  spm.gguf, bpe-<pre>.gguf          vocabularies; tokens.json: ids of the lines of LINES
"""
import json
import shutil
import tempfile

import numpy as np
import torch
from common import CLIP_MEAN, CLIP_STD, CORPUS, FIXTURES, train_tokenizer  # first: sets the environment
import gguf
from gguf import GGMLQuantizationType as Q
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.tokenization_utils_base import generate_merges

OUT = FIXTURES / "gguf"
LINES = ["The capital of France is", "  two  spaces and\ttabs\n\nlines ", "It's 1234567 o'clock, they'd say 3.14!",
         "naïve café \u0301 Ünïcödé", "日本語 and emoji 🙂🙃", "", " ", "x", "USER: <image>\nWhat?</s> and <s>", "ĠĠ ▁▁ <0x0A>",
         "def f(x):\n    return x**2  # 100%\r\n", "...!!!??? (a) [b] {c}", "\u00a0non\u2009breaking\u3000"]


# ---- tensors ---------------------------------------------------------------------------------------------------------
def raw(writer, name, t):
    """A torch tensor in its own type."""
    kinds = {torch.float32: Q.F32, torch.float16: Q.F16, torch.bfloat16: Q.BF16}
    data = t.contiguous()
    if t.dtype == torch.bfloat16:
        data = data.view(torch.uint8).numpy()
        writer.add_tensor(name, data, raw_dtype=Q.BF16)
    else:
        writer.add_tensor(name, data.numpy(), raw_dtype=kinds[t.dtype])


def permute(t, heads):
    """What converters do to q and k of Llama: the halves of each head become pairs."""
    return t.reshape(heads, 2, t.shape[0] // heads // 2, *t.shape[1:]).swapaxes(1, 2).reshape(t.shape)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(folder, file="model.safetensors"):
    with safe_open(FIXTURES / folder / file, "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}


def quants():
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(OUT / "quants.gguf", "llama")
    want = {}
    x = rng.normal(size=(2, 512)).astype(np.float32)
    for kind in (Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1):
        data = x if kind == Q.F32 else x.astype(np.float16) if kind == Q.F16 else gguf.quants.quantize(x, kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        want[kind.name] = gguf.quants.dequantize(data, kind) if kind != Q.F32 else x
    for kind, scales in ((Q.Q4_K, (0, 2)), (Q.Q5_K, (0, 2)), (Q.Q6_K, (208,))):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, size=(4, size), dtype=np.uint8)  # 2 blocks a row; every bit pattern is valid...
        for at in scales:  # ... but for scales, which are ordinary numbers, one of them subnormal
            d = (rng.normal(size=4) * 0.02).astype(np.float16)
            d[1] = np.float16(3e-6)
            data[:, at:at + 2] = d.view(np.uint8).reshape(4, 2)
        data = data.reshape(2, 2 * size)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        want[kind.name] = gguf.quants.dequantize(data, kind)
    finish(writer)
    save_file({k: np.ascontiguousarray(v.astype(np.float32)) for k, v in want.items()}, OUT / "quants.safetensors")


# ---- vocabularies ----------------------------------------------------------------------------------------------------
def add_bpe(writer, tok, pre, bos=1, eos=2):
    """The vocabulary of a tokenizer.json (its text, parsed)."""
    vocab = {v: k for k, v in tok["model"]["vocab"].items()}
    special = {a["id"] for a in tok["added_tokens"]}
    for a in tok["added_tokens"]:
        vocab[a["id"]] = a["content"]
    ids = range(max(vocab) + 1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([vocab[i] for i in ids])
    writer.add_token_types([3 if i in special else 1 for i in ids])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]])
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(True)


def tokenizer_of(folder):
    return json.loads((FIXTURES / folder / "tokenizer.json").read_text())


PRE = {  # as published tokenizer.json files of these models have it
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "llama-bpe": lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
    "qwen2": lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
}


def bpe_vocabularies(lines):
    corpus = CORPUS + ["1234567 890 12 345 it's IT'S ...\n\n  \n don't 12"] * 4
    for pre, make in PRE.items():
        tok = train_tokenizer(corpus, 330)
        tok.pre_tokenizer = make()
        model = json.loads(tok.to_str())["model"]
        if pre == "llama-bpe":
            model["ignore_merges"] = True
        new = json.loads(tok.to_str())
        new["model"] = model
        tok = Tokenizer.from_str(json.dumps(new))
        if pre == "qwen2":
            tok.normalizer = normalizers.NFC()
        writer = gguf.GGUFWriter(OUT / f"bpe-{pre}.gguf", "llama")
        add_bpe(writer, new, pre)
        finish(writer)
        lines[f"bpe-{pre}"] = [[tok.encode(s).ids, tok.decode(tok.encode(s).ids, skip_special_tokens=False)]
                               for s in LINES]


def spm_vocabulary(lines):
    """A BPE model with byte fallback; its file holds scores, not merges, as SentencePiece's do."""
    trainer = trainers.BpeTrainer(vocab_size=320, min_frequency=1, show_progress=False, limit_alphabet=90)
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.train_from_iterator(CORPUS, trainer)
    learned = sorted(tok.get_vocab().items(), key=lambda kv: (len(kv[0]) == 1, kv[1]))
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + [t for t, _ in learned] + ["<image>"]
    types = [2, 3, 3] + [6] * 256 + [1] * len(learned) + [4]
    joined = sum(len(t) > 1 for t, _ in learned)
    scores = [0.0] * 259 + [-float(i) for i in range(len(learned))] + [0.0]
    assert all(len(t) > 1 for t in tokens[259:259 + joined])
    writer = gguf.GGUFWriter(OUT / "spm.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer)
    vocab = {t: i for i, t in enumerate(tokens)}
    ordinary = [t for t, k in zip(tokens, types) if k != 1 and k != 4]
    merges = generate_merges(vocab, dict(zip(tokens, scores)), skip_tokens=ordinary)
    ref = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    ref.add_special_tokens(["<unk>", "<s>", "</s>"])
    ref.add_tokens([AddedToken("<image>", normalized=False)])
    ref.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # as Llama 2's
    ref.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    ref.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    lines["spm"] = [[ref.encode(s).ids, ref.decode(ref.encode(s).ids, skip_special_tokens=False)] for s in LINES]


# ---- models ----------------------------------------------------------------------------------------------------------
def add_sizes(writer, c):
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_vocab_size(c["vocab_size"])


def hf_names(arch, layers):
    """gguf's own table: HF name -> GGUF name."""
    table = gguf.get_tensor_name_map(arch, layers)
    return lambda name: table.get_name(name, try_suffixes=(".weight", ".bias"))


def llama():
    torch.manual_seed(5)
    tok = train_tokenizer(CORPUS, 320)
    config = LlamaConfig(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
                         rope_theta=5000.0, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    name = hf_names(gguf.MODEL_ARCH.LLAMA, 2)
    ids = torch.tensor([tok.encode("What is the capital of this country? It's 17 yellow circles.").ids[:12]])
    want = {"input_ids": ids[0].numpy().astype(np.int32)}
    for kind in ("f16", "q8_0"):
        path = OUT / f"llama-{kind}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        c = config.to_dict()
        add_sizes(writer, c)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(5000.0)
        writer.add_rope_dimension_count(8)
        add_bpe(writer, json.loads(tok.to_str()), "gpt-2")
        for k, t in model.state_dict().items():
            if "q_proj" in k:
                t = permute(t, 4)
            if "k_proj" in k:
                t = permute(t, 2)
            data = t.float().numpy()
            if t.ndim == 1:
                writer.add_tensor(name(k), data)
            elif kind == "f16":
                writer.add_tensor(name(k), data.astype(np.float16))
            else:
                writer.add_tensor(name(k), gguf.quants.quantize(data, Q.Q8_0), raw_dtype=Q.Q8_0)
        finish(writer)
        with tempfile.TemporaryDirectory() as tmp:
            shutil.copy(path, tmp)
            ref = AutoModelForCausalLM.from_pretrained(tmp, gguf_file=path.name, dtype=torch.float32).eval()
        with torch.no_grad():
            want[f"{kind}.logits"] = ref(ids).logits[0].numpy()
    save_file(want, OUT / "llama.safetensors")


def family(arch_name, arch, folder, fused=False):
    """tests/fixtures/<folder>, tensor by tensor in its own type."""
    c = json.loads((FIXTURES / folder / "config.json").read_text())
    writer = gguf.GGUFWriter(OUT / f"{arch_name}.gguf", arch_name)
    if arch_name == "gpt2":
        c |= {"num_hidden_layers": c["n_layer"], "max_position_embeddings": c["n_positions"], "hidden_size": c["n_embd"],
              "intermediate_size": c["n_inner"], "num_attention_heads": c["n_head"], "num_key_value_heads": c["n_head"]}
    add_sizes(writer, c)
    rope = c.get("rope_parameters", {})
    if "rms_norm_eps" in c:
        writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(c.get("layer_norm_eps", c.get("layer_norm_epsilon")))
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        head = c["hidden_size"] // c["num_attention_heads"]
        writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    add_bpe(writer, tokenizer_of(folder), "gpt-2")
    name = hf_names(arch, c["num_hidden_layers"])
    weights = load(folder)
    for k, t in weights.items():
        if fused and ".self_attn.q_proj." in k:
            parts = [weights[k.replace("q_proj", x)] for x in ("q_proj", "k_proj", "v_proj")]
            raw(writer, name(k).replace("attn_q", "attn_qkv"), torch.cat(parts))
        elif fused and (".self_attn.k_proj." in k or ".self_attn.v_proj." in k):
            continue
        elif arch_name == "gpt2" and (".c_" in k) and k.endswith(".weight"):
            raw(writer, name(k), t.T.contiguous())
        else:
            raw(writer, name(k), t)
    finish(writer)


def llava():
    c = json.loads((FIXTURES / "tiny-liuhaotian" / "config.json").read_text())
    v = json.loads((FIXTURES / "tiny-liuhaotian/clip-tiny/config.json").read_text())["vision_config"]
    weights, tower = load("tiny-liuhaotian"), load("tiny-liuhaotian/clip-tiny")
    writer = gguf.GGUFWriter(OUT / "llava.gguf", "llama")
    add_sizes(writer, c)
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    add_bpe(writer, tokenizer_of("tiny-liuhaotian"), "gpt-2")
    name = hf_names(gguf.MODEL_ARCH.LLAMA, c["num_hidden_layers"])
    for k, t in weights.items():
        if "mm_projector" not in k:
            heads = "q_proj" in k or "k_proj" in k
            raw(writer, name(k), permute(t, c["num_attention_heads"]).contiguous() if heads else t)
    finish(writer)

    writer = gguf.GGUFWriter(OUT / "llava-mmproj.gguf", "clip")
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_uint32("clip.vision.image_size", v["image_size"])
    writer.add_uint32("clip.vision.patch_size", v["patch_size"])
    writer.add_uint32("clip.vision.embedding_length", v["hidden_size"])
    writer.add_uint32("clip.vision.feed_forward_length", v["intermediate_size"])
    writer.add_uint32("clip.vision.block_count", v["num_hidden_layers"] - 1)
    writer.add_uint32("clip.vision.attention.head_count", v["num_attention_heads"])
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", v["layer_norm_eps"])
    writer.add_array("clip.vision.image_mean", CLIP_MEAN)
    writer.add_array("clip.vision.image_std", CLIP_STD)
    writer.add_bool("clip.use_gelu", False)
    name = hf_names(gguf.MODEL_ARCH.MMPROJ, v["num_hidden_layers"])
    last = f".layers.{v['num_hidden_layers'] - 1}."
    for k, t in tower.items():
        if last in k:  # published files leave out the layer that LLaVA does not use ...
            continue
        to = name("vision_tower." + k) if not k.endswith("class_embedding") else "v.class_embd"
        if ".fc1." in k:  # ... and have these two names swapped
            to = to.replace("ffn_up", "ffn_down")
        elif ".fc2." in k:
            to = to.replace("ffn_down", "ffn_up")
        raw(writer, to, t)
    for k, t in weights.items():
        if "mm_projector" in k:
            raw(writer, k.replace("model.mm_projector", "mm"), t)
    finish(writer)


def main():
    OUT.mkdir(exist_ok=True)
    lines = {}
    quants()
    bpe_vocabularies(lines)
    spm_vocabulary(lines)
    llama()
    family("qwen2", gguf.MODEL_ARCH.QWEN2, "tiny-qwen2")
    family("phi2", gguf.MODEL_ARCH.PHI2, "tiny-phi", fused=True)
    family("gpt2", gguf.MODEL_ARCH.GPT2, "tiny-gpt2")
    llava()
    with open(OUT / "tokens.json", "w") as f:
        json.dump({"lines": LINES, "files": lines}, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    print("\n".join(f"{p.stat().st_size:8d} {p.name}" for p in sorted(OUT.iterdir())))


main()
