"""Sentence vectors by transformers' BertModel: mean over all tokens, L2 norm.

    python tools/ref/encoder_ref.py              tests/fixtures/bert-tiny: a random BERT, its tokenizer, 20 sentences, vectors
    python tools/ref/encoder_ref.py --real DIR   the vectors of all-MiniLM-L6-v2, beside them (numbers only)

Versions: torch 2.13.0, transformers 5.23.0, tokenizers 0.23.3 (tools/ref/requirements.txt).
"""
import argparse
import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from common import FIXTURES

OUT = FIXTURES / "bert-tiny"
SENTENCES = [
    "New Fact: What is it? a dog\nPrompt: What is it? a dog\n\n", "a", "", "What color is the car?", "the the the the",
    "Where is the man with the red hat?", "How many elephants are there?", "yes", "no", "12:30", "München", "naïve café",
    "A man riding a wave on top of a surfboard.", "nq question: who was the first person to see it", "日本の旗",
    "New Fact: Is it red? yes\nPrompt: Say: is it red? yes\n\n", "UPPER and lower", "tabs\tand  blanks", "a-b, c; (d)!",
    " ".join(["word"] * 200)]


def embed(model, ids):
    with torch.no_grad():
        x = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).last_hidden_state
    return torch.nn.functional.normalize(x[0].mean(0), dim=0)


def cut(ids, most):
    return ids if len(ids) <= most else ids[:most - 1] + ids[-1:]


def vectors(folder, most):
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tok.no_truncation()
    tok.no_padding()
    model = BertModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return torch.stack([embed(model, cut(tok.encode(s).ids, most)) for s in SENTENCES])


def make_tiny():
    OUT.mkdir(exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["the", "is", "it", "what", "new", "fact", "prompt", "how", "man", "a", "red", "car", "##ing", "##er", "dog"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + list(letters) + ["##" + c for c in letters] + list(
        "?.,:;!()-") + [w for w in words if w not in letters]
    tok = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                       special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tok.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tok.save(str(OUT / "tokenizer.json"))
    torch.manual_seed(5)
    cfg = BertConfig(vocab_size=len(vocab), hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40,
                     max_position_embeddings=96, initializer_range=0.3)
    model = BertModel(cfg, add_pooling_layer=False).eval()
    for p in model.parameters():
        if p.dim() == 1:
            p.data += 0.2 * torch.randn_like(p)
    model.save_pretrained(OUT)
    (OUT / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}\n')
    (OUT / "sentences.json").write_text(json.dumps(SENTENCES, ensure_ascii=False, indent=0) + "\n")
    save_file({"tiny": vectors(OUT, 64)}, OUT / "vectors.safetensors")


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("--real")
    a = a.parse_args()
    if a.real:
        import pathlib
        save_file({"minilm": vectors(pathlib.Path(a.real), 256)}, OUT / "minilm.safetensors")
    else:
        make_tiny()
