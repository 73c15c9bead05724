#!/usr/bin/env python3
"""Makes tests/fixtures/tokenizer/spm: a small tokenizer.model of our own and what it makes of the corpus; and checks that
folders without tokenizer.json mean to transformers what tests/test_slow_tokenizer.c takes them for.

    python tools/ref/sentencepiece_fixture.py [--train]

Pinned: sentencepiece 0.2.3, protobuf 7.36.2, transformers 5.23.0, tokenizers 0.23.3. The files:
  tokenizer.model   BPE with byte fallback, no normalization, trained on the generated text
  legacy.bin        per line the CRC-32 (lowest bit 0) of ids and decoded text, see tokenizer_corpus.py. Ids by SentencePiece
                    itself: BOS, then every stretch between special tokens on its own, as the slow Llama tokenizer does
  first.bin         the same with "legacy": false, by transformers' LlamaTokenizer
and fuzz/corpus/spm. Decoded text comes from transformers in both.
"""
import argparse, io, json, os, re, struct, tempfile, zlib

import sentencepiece as spm
import transformers
from transformers import AutoTokenizer, LlamaTokenizer

from tokenizer_corpus import OUT, ROOT, make_corpus, nul, reference, write

assert spm.__version__ == "0.2.3" and transformers.__version__ == "5.23.0"
SPM = os.path.join(OUT, "spm")
FUZZ = os.path.join(ROOT, "fuzz", "corpus", "spm")


def train(lines, **more):
    text = [l for l in lines if "<" not in l and len(l) > 8 and "\0" not in l and "\n" not in l]
    out = io.BytesIO()
    opts = dict(model_type="bpe", vocab_size=1600, character_coverage=0.98, byte_fallback=True, normalization_rule_name="identity",
                remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2)
    opts.update(more)
    spm.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=out, **opts)
    return out.getvalue()


def pack(ids, dec):
    text = nul(dec(ids, False).encode()) + b"\0" + nul(dec(ids, True).encode())
    return struct.pack("<I", zlib.crc32(struct.pack("<%di" % len(ids), *ids) + text) & ~1)


def folder(files):
    d = tempfile.mkdtemp()
    for name, data in files.items():
        with open(os.path.join(d, name), "wb") as f:
            f.write(data if isinstance(data, bytes) else data.encode() if isinstance(data, str) else json.dumps(data).encode())
    return d


def sentencepiece_bins(model, lines):
    sp = spm.SentencePieceProcessor(model_proto=model)
    files = {"tokenizer.model": model, "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}}
    hf = LlamaTokenizer.from_pretrained(folder(files))
    dec = lambda ids, skip: hf._tokenizer.decode(ids, skip_special_tokens=skip)
    legacy, first, differ = b"", b"", 0
    for l in lines:
        ids = [1]
        for part in re.split("(<s>|</s>|<unk>)", l):
            if part in ("<s>", "</s>", "<unk>"): ids.append(sp.piece_to_id(part))
            elif part: ids += sp.encode(part)
        legacy += pack(ids, dec)
        now = hf(l)["input_ids"]
        differ += now != ids
        first += pack(now, dec)
    print("%d of %d lines differ between legacy and first" % (differ, len(lines)))
    write(os.path.join(SPM, "legacy.bin"), legacy)
    write(os.path.join(SPM, "first.bin"), first)


# ---- what transformers makes of folders without tokenizer.json -----------------------------------------------------
def slow_folder(name, j):
    m = j["model"]
    config = {"opt": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "additional_special_tokens": ["<s>", "<unk>"]},
              "codegen": {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False},
              "qwen": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"},
              "bert": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
              "bert-cased": {"tokenizer_class": "BertTokenizer", "do_lower_case": False}}[name]
    if "bert" in name:
        return folder({"vocab.txt": "".join(t + "\n" for t in sorted(m["vocab"], key=m["vocab"].get)), "tokenizer_config.json": config})
    merges = [x if isinstance(x, str) else " ".join(x) for x in m["merges"]]
    if name != "opt":
        config["added_tokens_decoder"] = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in j["added_tokens"]}
    extra = {t["content"]: t["id"] for t in j["added_tokens"] if t["content"] not in m["vocab"]}
    return folder({"vocab.json": m["vocab"], "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n", "added_tokens.json": extra, "tokenizer_config.json": config})


def check_slow(lines):
    for name in ("opt", "codegen", "qwen", "bert", "bert-cased"):
        j = json.load(open(os.path.join(OUT, "own", name + ".json")))
        if name == "bert-cased": j["model"]["max_input_chars_per_word"] = 100
        want, got = reference(j), AutoTokenizer.from_pretrained(slow_folder(name, j))
        bad = [l for l in lines if want.encode(l).ids != got(l)["input_ids"]]
        print("%s: %d lines differ from transformers' own reading of the folder" % (name, len(bad)), [b[:60] for b in bad[:5]])


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--train", action="store_true")
    args = ap.parse_args()
    lines, path = make_corpus(), os.path.join(SPM, "tokenizer.model")
    if args.train or not os.path.exists(path): write(path, train(lines))
    model = open(path, "rb").read()
    sentencepiece_bins(model, lines)
    check_slow(lines)
    few = dict(vocab_size=360, character_coverage=0.98, max_sentence_length=200)
    ascii = [l for l in lines if l.isascii()][:400]
    for name, more in (("bpe", {}), ("user", dict(user_defined_symbols="<image>,\u2581\u2581")), ("no-bytes", dict(byte_fallback=False)), ("unigram", dict(model_type="unigram")),
                       ("squeeze", dict(remove_extra_whitespaces=True)), ("no-prefix", dict(add_dummy_prefix=False))):
        write(os.path.join(FUZZ, name), train(ascii, **{**few, **more}))
    cut = open(os.path.join(FUZZ, "bpe"), "rb").read()
    write(os.path.join(FUZZ, "cut"), cut[:len(cut) // 2])
    write(os.path.join(FUZZ, "rules"), cut + b"\x1a\x06\x12\x04abcd")  # a later normalizer_spec with a precompiled_charsmap


main()
