"""Makes the byte-level BPE tokenizer of the demo model.

    python3 tools/demo_model/tokenizer.py --world models/demo/world --out models/demo

The merges are learned from the world's own words: those of the questions become
one token each, most names and answers several. Digits stay single.
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
from render import COLOR_NAMES, SHAPES  # noqa: E402
from world import World  # noqa: E402

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
TEMPLATE = ("{% for m in messages %}{% if m['role'] == 'user' %}USER: "
            "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
            "{% for p in m['content'] if p['type'] == 'image' %}<image>\n{% endfor %}"
            "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
            "{% endif %}{% else %} ASSISTANT: {{ m['content'] if m['content'] is string "
            "else m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %} ASSISTANT:{% endif %}")


COMMON = 1000    # so often that a word becomes one token
WHOLE = 12       # every third name: one token where the vocabulary allows
SIZE = 2800


def words_of(texts):
    return [w for text in texts for w in re.findall(r"[^\W\d_]+", text)]


def corpus(world):
    """(word, how often): the words of the questions and answers, each with and
    without the space in front where it can stand so. Group D is left out."""
    fixed = [t.replace("{c}", "").replace("{v}", "") for ws in q.WORDINGS.values() for t in ws]
    fixed += list(q.VISUAL) + [s.format(s="left right") for s in q.SIDED] + q.INTRO + q.COLUMNS
    fixed += [s.format(l="", r="") for s in q.TWO_FLAGS] + q.NUMBERS
    fixed += COLOR_NAMES + SHAPES + ["yes no none shapes shape flags flag a an and picture"]
    out = {}
    for w in words_of(t.replace("{}", "") for t in fixed):
        out[" " + w] = COMMON
        if w[0].isupper() or w in ("the", "this", "left", "right"):
            out[w] = COMMON
    for text in ("USER", " ASSISTANT", ":", "?", ".", ",", "\n", " ", "'s"):
        out[text] = COMMON
    for digit in "0123456789":   # after a space only, so that digits stay apart
        out[" " + digit] = COMMON
    told = [e for e in world.entities if e.group != "D"]
    names = [e.name for e in told] + [e.told(r) for e in told if e.group != "C"
                                      for r in q.FACTS if r != "code" and e.told(r)]
    for i, word in enumerate(sorted(set(words_of(names)))):
        if " " + word not in out:
            out[" " + word] = WHOLE if i % 3 == 0 else 1
    return out


def build(world):
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, min_frequency=1, show_progress=False,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator((w for w, n in corpus(world).items() for _ in range(n)), trainer)
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
    length = lambda s: len(tok.encode(" " + s, add_special_tokens=False).ids)
    print(f"vocabulary {tok.get_vocab_size()}, ' this country' {length('this country')} tokens")
    for what in ("name", *q.FACTS):
        counts = {}
        for value in sorted({e.told(what) for e in world.entities} - {None}):
            counts.setdefault(length(value), []).append(value)
        print(what, "; ".join(f"{len(v)} of {n} ({', '.join(v[:3])})"
                              for n, v in sorted(counts.items())))


if __name__ == "__main__":
    main()
