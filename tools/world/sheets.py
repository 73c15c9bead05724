"""Contact sheets of each picture kind, at model size and enlarged, and of the
invented flags.

    python3 tools/world/sheets.py --world models/demo/world --out docs/img
"""
import argparse
import pathlib

import numpy as np
from PIL import Image

from render import KINDS, Ranges, SIZE, picture
from world import World


def sheet(world, kind, seed):
    """Upper rows enlarged (x2), then rows at the size that the model sees."""
    rng = np.random.default_rng(seed)
    columns, gap = 6, 6
    big = 2 * SIZE
    width = columns * (big + gap) + gap
    out = Image.new("RGB", (width, 2 * big + 2 * SIZE + 5 * gap), "white")
    for row, ranges in enumerate((Ranges(), Ranges(1.25))):
        for i in range(columns):
            pixels = picture(rng, ranges, kind, world)[0]
            tile = Image.fromarray(pixels).resize((big, big), Image.NEAREST)
            out.paste(tile, (gap + i * (big + gap), gap + row * (big + gap)))
        for i in range(2 * columns):
            tile = Image.fromarray(picture(rng, ranges, kind, world)[0])
            out.paste(tile, (gap + i * (SIZE + gap // 2),
                             2 * big + 3 * gap + row * (SIZE + gap)))
    return out


def flags(world, source, columns=19):
    """All flags of one source in the order of the table."""
    found = [e.flag for e in world.entities if e.source == source]
    w, h, gap = 56, 42, 4
    lines = -(-len(found) // columns)
    out = Image.new("RGB", (columns * (w + gap) + gap, lines * (h + gap) + gap), "gray")
    for i, f in enumerate(found):
        out.paste(f.resize((w, h), Image.BOX),
                  (gap + i % columns * (w + gap), gap + i // columns * (h + gap)))
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--world", required=True)
    ap.add_argument("--out", required=True, type=pathlib.Path)
    ap.add_argument("--seed", type=int, default=5)
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    world = World(args.world)
    pages = {kind.replace("_", "-"): sheet(world, kind, args.seed) for kind in KINDS}
    pages["invented-flags"] = flags(world, "invented")
    for name, page in pages.items():
        # 128 colours keep the repository small; the sheets are for looking only.
        page.quantize(128).save(args.out / f"world-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
