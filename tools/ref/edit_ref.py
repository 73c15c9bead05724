"""p(target) of the demo question by transformers, from an exported folder.

    python tools/ref/edit_ref.py --loads DIR [--target " Oslo"]

Edits themselves are compared by edit_methods_ref.py. Versions: torch 2.13.0, transformers 5.23.0
(tools/ref/requirements.txt).
"""
import argparse
import pathlib

import torch
from PIL import Image
from tokenizers import Tokenizer

import capture_ref
from common import ROOT, preprocess, read_json

DEMO = ROOT / "models" / "demo"
QUESTION = "What is the capital of this country?"


class Demo:
    def __init__(self, folder=DEMO):
        self.m = capture_ref.load(folder)
        for p in self.m.parameters():
            p.requires_grad_(False)
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.cfg = read_json(folder / "preprocessor_config.json")
        self.n_image = self.m.config.image_seq_length

    def inputs(self, picture, question, target):
        text = f"USER: {'<image>' + chr(10) if picture else ''}{question} ASSISTANT:"
        image = self.tok.token_to_id("<image>")

        def ids(s):
            out = []
            for t in self.tok.encode(s).ids:
                out += [t] * (self.n_image if t == image else 1)
            return out
        prompt, whole = ids(text), ids(text + target)
        assert whole[:len(prompt)] == prompt
        pixels = torch.tensor(preprocess(Image.open(DEMO / picture), self.cfg))[None] if picture else None
        return prompt, whole[len(prompt):], pixels

    def logp(self, prompt, target, pixels):
        x = torch.tensor([prompt + target[:-1]])
        kw = dict(pixel_values=pixels) if pixels is not None else {}
        rows = self.m(input_ids=x, **kw).logits[0, len(prompt) - 1:]
        return torch.log_softmax(rows, -1)[range(len(target)), target]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--loads", required=True)
    ap.add_argument("--target", default=" Oslo")
    a = ap.parse_args()
    torch.set_num_threads(2)
    demo = Demo(pathlib.Path(a.loads))
    p = demo.logp(*demo.inputs("samples/peru.png", QUESTION, a.target))
    print(f"p({a.target.strip()}) = {p.sum().exp().item():.6f}")


if __name__ == "__main__":
    main()
