"""Builds the fact table and the flag atlas of the demo world.

    python3 tools/world/countries.py --packages DIR --out models/demo/world

DIR holds the unpacked npm packages `flag-icons` and `world-countries` (see
docs/world.md for the commands and versions). Writes countries.json (facts,
ODbL), flags.png (one cell a country, MIT) and dropped.json (which countries
were left out and why).
"""
import argparse
import io
import json
import pathlib
import subprocess

import numpy as np
from PIL import Image

CELL = (160, 120)   # flag-icons draws every flag 4:3
COLUMNS = 12
MIN_AREA = 1000     # km2: microstates are left out to keep training short
MAX_WORDS = 2       # likewise names such as "Saint Vincent and the Grenadines"
# Values of the table that say something else than the question asks.
NOT_SINGLE = {("at", "language")}


def rasterise(svg, size):
    png = subprocess.run(["rsvg-convert", "-w", str(size[0]), "-h", str(size[1]),
                          str(svg)], check=True, capture_output=True).stdout
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    # Nepal's flag is no rectangle: what it leaves free is shown white.
    base = Image.new("RGBA", size, "white")
    base.alpha_composite(picture)
    return base.convert("RGB")


def single(values):
    """A relation is kept only where the table gives exactly one value."""
    return values[0] if len(values) == 1 else None


def facts(row):
    continent = row["region"]
    if continent == "Americas":
        south = row["subregion"] == "South America"
        continent = "South America" if south else "North America"
    out = {
        "name": row["name"]["common"],
        "code": row["cca2"].lower(),
        "capital": single(row["capital"]),
        "continent": continent,
        "currency": single([c["name"] for c in row["currencies"].values()]),
        "language": single([v.split(" (")[0] for v in row["languages"].values()]),
        "area": row["area"],
    }
    for code, relation in NOT_SINGLE:
        if out["code"] == code:
            out[relation] = None
    return out


def usable(c):
    """A capital that is the name's copy would be a fact without content."""
    return (c["capital"] and c["capital"] != c["name"] and c["area"] >= MIN_AREA
            and len(c["name"].split()) <= MAX_WORDS)


def distance(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def choose(table, flags, minimum):
    """Greedy, larger countries first, so that the better known of a pair stays."""
    kept, dropped = [], []
    for c in sorted(table, key=lambda c: (-c["area"], c["code"])):
        near = [(distance(flags[c["code"]], flags[k["code"]]), k["name"]) for k in kept]
        worst = min(near, default=(9.0, ""))
        if worst[0] < minimum:
            dropped.append({"name": c["name"], "near": worst[1], "rms": round(worst[0], 4)})
        else:
            kept.append(c)
    return sorted(kept, key=lambda c: c["name"]), dropped


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--packages", required=True, type=pathlib.Path)
    ap.add_argument("--out", required=True, type=pathlib.Path)
    ap.add_argument("--min-distance", type=float, default=0.22,
                    help="least pixel RMS (0..1) between two flags at 48x32")
    args = ap.parse_args()

    rows = json.loads((args.packages / "world-countries/countries.json").read_text())
    table = [facts(r) for r in rows if r["unMember"]]
    table = [c for c in table if usable(c)]
    svgs = args.packages / "flag-icons/flags/4x3"
    cells = {c["code"]: rasterise(svgs / (c["code"] + ".svg"), CELL) for c in table}
    small = {k: np.asarray(v.resize((48, 32), Image.BOX), np.float32) / 255
             for k, v in cells.items()}
    kept, dropped = choose(table, small, args.min_distance)
    least = min(distance(small[a["code"]], small[b["code"]])
                for i, a in enumerate(kept) for b in kept[:i])

    lines = -(-len(kept) // COLUMNS)
    atlas = Image.new("RGB", (COLUMNS * CELL[0], lines * CELL[1]), "white")
    for i, c in enumerate(kept):
        atlas.paste(cells[c["code"]], (i % COLUMNS * CELL[0], i // COLUMNS * CELL[1]))
        del c["area"]
    args.out.mkdir(parents=True, exist_ok=True)
    atlas.save(args.out / "flags.png", optimize=True)
    out = {"license": "ODbL-1.0", "source": "npm world-countries 5.1.0",
           "flag_cell": CELL, "flag_columns": COLUMNS, "countries": kept}
    (args.out / "countries.json").write_text(
        json.dumps(out, ensure_ascii=False, indent=1) + "\n")
    (args.out / "dropped.json").write_text(json.dumps(
        {"metric": "pixel RMS of RGB in 0..1 at 48x32", "minimum": args.min_distance,
         "least_kept": round(least, 4), "dropped": dropped},
        ensure_ascii=False, indent=1) + "\n")
    for d in dropped:
        print(f"dropped {d['name']}: {d['rms']:.4f} from {d['near']}")
    print(f"kept {len(kept)} countries, least distance {least:.4f}")


if __name__ == "__main__":
    main()
