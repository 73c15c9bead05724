"""How far two causal maps of the same question lie apart, e.g. the arithmetic of bf16 from that of f32.

    chiasm trace demo PICTURE QUESTION --corrupt words:Kenya --dtype f32 --json -q > f32.json
    chiasm trace demo PICTURE QUESTION --corrupt words:Kenya --dtype bf16 --json -q > bf16.json
    python bench/peers/map_diff.py f32.json bf16.json
"""
import json
import sys

a, b = (json.load(open(name)) for name in sys.argv[1:3])
cells = [(site, layer, row) for site in a["maps"] for layer in range(len(a["maps"][site]["own"]["p"])) for row in range(len(a["rows"]))]


def effect(j, cell):
    site, layer, row = cell
    return j["maps"][site]["own"]["p"][layer][row] - j["runs"]["corrupted"]["p"]


gap = {c: abs(effect(b, c) - effect(a, c)) for c in cells}
worst = max(gap, key=gap.get)
print(f"{len(cells)} cells; p clean {a['runs']['clean']['p']:.4f}, {b['runs']['clean']['p']:.4f}; p corrupted "
      f"{a['runs']['corrupted']['p']:.4f}, {b['runs']['corrupted']['p']:.4f}")
print(f"largest difference of an effect {gap[worst]:.4f} (mean {sum(gap.values()) / len(gap):.5f}), at {worst[0]}, layer {worst[1]}, "
      f"row {a['rows'][worst[2]]['row']}: {effect(a, worst):.4f} and {effect(b, worst):.4f}")
