"""Two Llama checkpoints with hand-written weights, whose causal maps are known before they are measured.

planted-kv   "... of old Varn is" -> " Lio". The MLP of one layer, at the constraint's last token, maps the name to its
             capital; a later attention layer carries the capital to the last row. Nothing else knows it.
planted-hop  the same with two facts in a row: the name gives its capital, attention carries that to the word " where", a
             later MLP there maps the capital to its river, and attention carries the river to the last row.

The residual stream is divided by hand (d = 64):
  0..7   which name (one-hot)      8..15  its capital      16..23  its river      24..31  the answer, read by the head
  40     this row looks for a capital (" where")            41  this row looks for the answer (" is", the last row)
  42     this row is a name's last token                    43  this row is " where"
  44..62 something random, different for every token        63  the constant 8: it keeps every row's rms near 1 and
                                                                serves the neurons as a bias
All other weights are small random numbers, so that nothing is exactly zero.
"""
import json
import shutil

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import capture_ref
import trace_ref
from common import BOS, EOS, FIXTURES, PAD, save_states, save_tokenizer, train_tokenizer, write_json

D, HEADS, FFN, SIZE = 64, 4, 16, 352
NAME, CAPITAL, RIVER, ANSWER = 0, 8, 16, 24
SEEKS_CAPITAL, SEEKS_ANSWER, IS_NAME, IS_WHERE, CONST = 40, 41, 42, 43, 63
NAMES = ["Varn", "Mesk", "Tull", "Oran", "Pelk", "Zorn"]
CAPITALS = ["Lio", "Dast", "Kima", "Brev", "Suno", "Yell"]
RIVERS = ["Ruun", "Gath", "Wem", "Ilka", "Hode", "Fyr"]
FIRST = ["old", "new"]
WORDS = [" " + w for w in NAMES + CAPITALS + RIVERS + FIRST + ["where", "is", "of", "The", "capital", "river"]]
SENTENCES = {"planted-kv": "The capital of [old Varn] is", "planted-hop": "The river of [old Varn] where it is"}


def tokenizer():
    text = ["The capital of old Varn is", "The river of new Mesk where it is", "It is where old Tull is."]
    return train_tokenizer(text * 3, SIZE, single=WORDS)


def neurons(mlp, source, target, gain):
    """One gated neuron per fact: open when the one-hot entry i of `source` is there, it writes entry i of `target`."""
    for i in range(len(NAMES)):
        mlp.gate_proj.weight[i, source + i] = 16.0
        mlp.gate_proj.weight[i, CONST] = -1.0          # -8 when closed; with the entry at about 1: +8
        mlp.up_proj.weight[i, CONST] = 1 / 8
        mlp.down_proj.weight[target + i, i] = gain


def carry(attn, seeks, marker, source, target):
    """Head 0: a row with `seeks` looks at the row with `marker` and copies 8 entries of it. The query and the key live in
    the last rotary pair, which turns by 3e-4 a token only."""
    hd = D // HEADS
    attn.q_proj.weight[hd // 2 - 1, seeks] = 10.0
    attn.k_proj.weight[hd // 2 - 1, marker] = 10.0
    for i in range(8):
        attn.v_proj.weight[i, source + i] = 1.0
        attn.o_proj.weight[target + i, i] = 1.0


def build(name, tok):
    torch.manual_seed(7)
    layers = {"planted-kv": 6, "planted-hop": 8}[name]
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=SIZE, hidden_size=D, intermediate_size=FFN, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=256, rms_norm_eps=1e-5, pad_token_id=PAD, bos_token_id=BOS,
        eos_token_id=EOS)).eval()
    one = lambda w: tok.encode(" " + w, add_special_tokens=False).ids[0]
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "norm" in n:
                p.fill_(1.0)
            elif "embed_tokens" in n:
                p.zero_()
                p[:, 44:CONST] = 0.1 * torch.randn(SIZE, CONST - 44)
                p[:, CONST] = 8.0
            else:
                p.copy_(0.01 * torch.randn(p.shape))
        e, head = model.model.embed_tokens.weight, model.lm_head.weight
        head[:, CONST] = 0.0
        for i, n in enumerate(NAMES):
            e[one(n), NAME + i] = 1.0
            e[one(n), IS_NAME] = 1.0
        e[one("where"), SEEKS_CAPITAL] = 1.0
        e[one("where"), IS_WHERE] = 1.0
        e[one("is"), SEEKS_ANSWER] = 1.0
        block = model.model.layers
        if name == "planted-kv":
            neurons(block[2].mlp, NAME, CAPITAL, 0.5)
            carry(block[4].self_attn, SEEKS_ANSWER, IS_NAME, CAPITAL, ANSWER)
            answers = CAPITALS
        else:
            neurons(block[1].mlp, NAME, CAPITAL, 0.5)
            carry(block[3].self_attn, SEEKS_CAPITAL, IS_NAME, CAPITAL, CAPITAL)
            neurons(block[4].mlp, CAPITAL, RIVER, 0.2)
            for i in range(len(NAMES)):  # 3 arrives where 1 did: open wider, and only on the " where" row
                block[4].mlp.gate_proj.weight[i, CAPITAL + i] = 8.0
                block[4].mlp.gate_proj.weight[i, IS_WHERE] = 12.0
                block[4].mlp.gate_proj.weight[i, CONST] = -3.0
            carry(block[6].self_attn, SEEKS_ANSWER, IS_WHERE, RIVER, ANSWER)
            answers = RIVERS
        for i, a in enumerate(answers):
            head[one(a), ANSWER + i] = 6.0
    return model, answers


def expected(name, item, layers):
    """Cells (site, layer, row) that must restore the answer; every other cell must leave it lost."""
    name_row, last = item.span[-1], item.positions[-1]
    if name == "planted-kv":
        peaks = {"mlp": [(2, name_row)], "attn": [(4, last)]}
        path = [(name_row, 0, 4), (last, 4, layers)]
    else:
        where = name_row + 1
        peaks = {"mlp": [(1, name_row), (4, where)], "attn": [(3, where), (6, last)]}
        path = [(name_row, 0, 3), (where, 3, 6), (last, 6, layers)]
    peaks["hidden"] = [(l, row) for row, a, b in path for l in range(a, b)]
    return peaks


def make(name):
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tok = tokenizer()
    save_tokenizer(tok, folder)
    model, answers = build(name, tok)
    layers = model.config.num_hidden_layers
    model.to(torch.float16).save_pretrained(folder)
    write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
                                                   "transformers_version": "5.23.0"})
    model = capture_ref.load(folder)
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = SENTENCES[name].replace("[old Varn]", "{}")
    for first in FIRST:
        for n, a in zip(NAMES, answers):
            item = trace_ref.make_item(model, tok, template.format(f"[{first} {n}]"))
            p = model(torch.tensor([item.ids])).logits[0, -1].softmax(-1)
            assert tok.decode([int(p.argmax())]) == " " + a and p.max() > 0.95, (n, a, float(p.max()))
    item = trace_ref.make_item(model, tok, SENTENCES[name])
    assert len(item.span) == 2 and len(item.ids) < 20
    out = trace_ref.trace(trace_ref.Rig(model), item, None, item.replaced("new Mesk"))
    trace_ref.check(out)
    clean, corr = float(out["p_clean"][0]), float(out["p_corr"][0])
    assert clean > 0.95 and corr < 0.01, (clean, corr)
    peaks = expected(name, item, layers)
    for site, cells in peaks.items():
        m = out[f"sub.{site}.w1"]
        want = np.zeros(m.shape, bool)
        for l, row in cells:
            want[l, item.positions.index(row)] = True
        assert m[want].min() > 0.95 and m[~want].max() < 0.02, (site, m.round(3))
    words = [tok.decode([t]) for t in item.ids]
    write_json(folder / "planted.json", {
        "prompt": item.prompt, "question": SENTENCES[name], "constraint": "old Varn", "replacement": "new Mesk",
        "answer": " " + answers[0], "counterfactual": " " + answers[1], "tokens": words, "ids": item.ids,
        "span": item.span, "p_clean": clean, "p_corrupted": corr, "restored_above": 0.95, "others_below": 0.02,
        "peaks": [{"site": s, "layer": l, "row": r} for s in peaks for l, r in peaks[s]],
        "facts": {n: a for n, a in zip(NAMES, answers)}, "names": [" " + n for n in NAMES],
        "fact_tensors": [f"model.layers.{l}.mlp.down_proj.weight" for l, _ in peaks["mlp"]],
        "neurons": "in the planted MLPs neuron i of down_proj belongs to name i"})
    save_states(folder / "maps.safetensors", out, {"prompt": item.prompt, "constraint": "old Varn", "replace": "new Mesk"})
    print(f"{name}: {json.dumps(words)}, span {item.span}, p clean {clean:.4f}, corrupted {corr:.2e}; peaks {peaks}")


if __name__ == "__main__":
    for n in SENTENCES:
        make(n)
