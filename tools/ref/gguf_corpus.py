"""Seeds of fuzz/corpus/gguf: small whole files and damaged ones. python tools/ref/gguf_corpus.py (needs gguf==0.19.0)"""
import pathlib
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

OUT = pathlib.Path(__file__).resolve().parents[2] / "fuzz" / "corpus" / "gguf"


def model(name, arch, tokens, kind=Q.Q8_0):
    """One layer, three words."""
    writer = gguf.GGUFWriter(OUT / name, arch)
    writer.add_block_count(1)
    writer.add_context_length(8)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    tokens(writer)
    rng = np.random.default_rng(1)
    for n, rows in (("token_embd", 4), ("blk.0.attn_q", 32), ("blk.0.attn_k", 16), ("blk.0.attn_v", 16),
                    ("blk.0.attn_output", 32), ("blk.0.ffn_gate", 32), ("blk.0.ffn_up", 32), ("blk.0.ffn_down", 32)):
        x = rng.normal(size=(rows, 32)).astype(np.float32)
        writer.add_tensor(n + ".weight", gguf.quants.quantize(x, kind), raw_dtype=kind)
    for n in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(n + ".weight", np.ones(32, np.float32))
    close(writer)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bpe(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<s>", "I", "t", "It"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["I t"])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(True)


def spm(writer):
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<0x31>", "▁", "▁I"])
    writer.add_token_scores([0.0, 0.0, -2.0, -1.0])
    writer.add_token_types([2, 6, 1, 4])
    writer.add_bos_token_id(0)


def vision():
    writer = gguf.GGUFWriter(OUT / "mmproj", "clip")
    for key, v in (("image_size", 4), ("patch_size", 2), ("embedding_length", 2), ("feed_forward_length", 3),
                   ("attention.head_count", 1)):
        writer.add_uint32("clip.vision." + key, v)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.feature_layer", [1])
    for n, shape in (("v.patch_embd.weight", (2, 3, 2, 2)), ("v.position_embd.weight", (5, 2)), ("v.class_embd", (2,)),
                     ("v.blk.0.ln1.weight", (2,)), ("v.blk.0.ffn_down.weight", (3, 2)), ("mm.0.weight", (2, 2)),
                     ("mm.2.weight", (2, 2))):
        writer.add_tensor(n, np.ones(shape, np.float32))
    close(writer)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    model("llama-bpe", "llama", bpe)
    model("llama-spm", "llama", spm, Q.Q4_1)
    model("qwen2", "qwen2", bpe, Q.Q5_0)
    vision()
    whole = (OUT / "llama-bpe").read_bytes()
    head = b"GGUF" + struct.pack("<I", 3)
    write = lambda name, b: (OUT / name).write_bytes(b)
    write("empty-model", head + struct.pack("<QQ", 0, 0))
    write("cut-header", head)
    write("cut-metadata", whole[:300])
    write("cut-data", whole[:-40])
    write("version-1", b"GGUF" + struct.pack("<IIIQ", 1, 0, 0, 0))
    write("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    write("huge-counts", head + struct.pack("<QQ", 1 << 63, 1 << 62))
    write("huge-string", head + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 60) + b"x" * 40)
    write("huge-array", head + struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 12, 1 << 61))
    write("nested", head + struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1) * 1
          + struct.pack("<IQ", 9, 1) * 8 + struct.pack("<IQ", 0, 0))
    write("not-gguf", b"PK\3\4 not this")
    tensor = lambda name, dims, kind, at: struct.pack("<Q", len(name)) + name + struct.pack(
        f"<I{len(dims)}QIQ", len(dims), *dims, kind, at)
    two = head + struct.pack("<QQ", 2, 0)
    pad = lambda b: b + b"\0" * (-len(b) % 32) + b"\0" * 64
    write("overlap", pad(two + tensor(b"a", [8], 0, 0) + tensor(b"b", [8], 0, 0)))
    write("twice", pad(two + tensor(b"a", [4], 0, 0) + tensor(b"a", [4], 0, 32)))
    write("wrap", pad(two + tensor(b"a", [4], 0, 0) + tensor(b"b", [1 << 33, 1 << 33], 0, 32)))
    write("unknown-type", pad(two + tensor(b"a", [4], 0, 0) + tensor(b"b", [32], 21, 32)))
    write("alignment-0", head + struct.pack("<QQQ", 0, 1, 17) + b"general.alignment" + struct.pack("<II", 4, 0))
    print(len(list(OUT.iterdir())), "files")


main()
