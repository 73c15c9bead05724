"""Makes the byte-level BPE tokenizer of the demo model.

    python3 tools/demo_model/tokenizer.py --world models/demo/world --out models/demo

The merges are learned from the world's own words. Names are cut once by hand
before learning, so that most take two tokens, as many as "this country" does:
a same-length substitution then has many names to choose from.
"""
import argparse
import json
import pathlib
import re
import sys

from tokenizers import (AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors,
                        trainers)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "world"))
import questions as q  # noqa: E402
from render import COLOR_NAMES, SHAPES, World  # noqa: E402

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
TEMPLATE = ("{% for m in messages %}{% if m['role'] == 'user' %}USER: "
            "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
            "{% for p in m['content'] if p['type'] == 'image' %}<image>\n{% endfor %}"
            "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
            "{% endif %}{% else %} ASSISTANT: {{ m['content'] if m['content'] is string "
            "else m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %} ASSISTANT:{% endif %}")


def halves(word, others, least):
    """Cuts a word after its shortest prefix that no other word shares."""
    for n in range(least, len(word) - 1):
        if not any(o != word and o.startswith(word[:n]) for o in others):
            return [" " + word[:n], word[n:]]
    return [" " + word]


def pieces(world):
    """The strings that are to become tokens."""
    out = ["USER", " ASSISTANT", ":", "?", ".", ",", "\n", " ", "'s"]
    fixed = [w for group in q.WORDINGS.values() for w in group]
    fixed += q.VISUAL + [s.format(s="left right") for s in q.SIDED] + q.SCENE_INTRO
    fixed += COLOR_NAMES + SHAPES + ["a an and"]
    for text in fixed:
        for word in re.findall(r"[A-Za-z]+", text.replace("{c}", "")):
            out += [word, " " + word]
    names = {w for c in world.countries for w in c["name"].split()}
    words = {w for c in world.countries for r in q.FACTS if c[r] for w in c[r].split()}
    for i, c in enumerate(sorted(world.countries, key=lambda c: c["name"])):
        parts = c["name"].split()
        if len(parts) > 1 or i % 6 == 0:     # two words, or one token
            out += [" " + p for p in parts]
        elif i % 6 == 1 and len(parts[0]) > 7:   # three tokens
            head, tail = halves(parts[0], names, 3)
            out += [head, tail[:2], tail[2:]]
        else:
            out += halves(parts[0], names, 3)
    for word in sorted(words - names):
        out += halves(word, words, 4) if len(word) > 8 else [" " + word]
    return out


def build(world):
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, show_progress=False,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(pieces(world), trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tok.token_to_id("<s>"))])
    return tok


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--world", required=True)
    ap.add_argument("--out", required=True, type=pathlib.Path)
    args = ap.parse_args()
    world = World(args.world)
    tok = build(world)
    tok.save(str(args.out / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
              "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
              "image_token": "<image>", "add_bos_token": True, "model_max_length": 512,
              "clean_up_tokenization_spaces": False, "padding_side": "left",
              "chat_template": TEMPLATE}
    (args.out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    # Processors look for the template in a file of its own, tokenizers in either.
    (args.out / "chat_template.jinja").write_text(TEMPLATE)
    length = lambda s: len(tok.encode(s, add_special_tokens=False).ids)
    counts = {}
    for c in world.countries:
        counts.setdefault(length(" " + c["name"]), []).append(c["name"])
    print(f"vocabulary {tok.get_vocab_size()}, ' this country' {length(' this country')} tokens")
    for n, names in sorted(counts.items()):
        print(f"{len(names)} names of {n} tokens: {', '.join(names[:12])} ...")
    capitals = [tok.encode(" " + c["capital"], add_special_tokens=False).ids[0]
                for c in world.countries]
    print(f"{len(set(capitals))} distinct first tokens of {len(capitals)} capitals")


if __name__ == "__main__":
    main()
