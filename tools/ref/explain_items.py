"""tests/fixtures/explain/items.jsonl: questions about one tiny picture with masks, for the fair test of explainers.

    python tools/ref/explain_items.py
"""
import json

import numpy as np
from PIL import Image

from common import FIXTURES

FOLDER = FIXTURES / "explain"
MASKS = {"a": (0, 8, 18, 27), "b": (18, 27, 37, 45), "cropped": (0, 0, 37, 5)}  # left, top, right, bottom
ITEMS = [("right-a", "What is the [capital] of this country?", "#198", "a"),
         ("right-b", "What colour is the [flag]?", "#161", "b"),
         ("wrong", "What is [left]?", "#20", "b"),
         ("cropped", "Which [country] is it?", "#198", "cropped"),
         ("no-mask", "Which [country] is it?", "#198", None)]


def main():
    for name, (x0, y0, x1, y1) in MASKS.items():
        mask = np.zeros((53, 37), np.uint8)  # of tiny-gqa/picture.png
        mask[y0:y1, x0:x1] = 255
        Image.fromarray(mask).save(FOLDER / f"mask-{name}.png", optimize=True)
    with open(FOLDER / "items.jsonl", "w") as f:
        for name, question, answer, mask in ITEMS:
            f.write(json.dumps({"id": name, "image": "../tiny-gqa/picture.png", "question": question, "answer": answer,
                                "mask": mask and f"mask-{mask}.png", "group": "scene", "relation": "color",
                                "entity": name, "unit": name, "split": "test"}) + "\n")


if __name__ == "__main__":
    main()
