"""The real countries of the demo world: fact table and flags.

Reads the unpacked npm packages `world-countries` (facts, ODbL) and `flag-icons`
(flags, MIT). `build.py` writes what this module makes.
"""
import io
import json
import subprocess

import numpy as np
from PIL import Image

CELL = (160, 120)   # flag-icons draws every flag 4:3
SMALL = (48, 32)    # the size at which two flags are compared
MIN_DISTANCE = 0.10
REGIONS = ["Africa", "Asia", "Caribbean", "Europe", "North America", "Oceania", "South America"]
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


def region(row):
    if row["region"] != "Americas":
        return row["region"]
    return {"South America": "South America", "Caribbean": "Caribbean"}.get(
        row["subregion"], "North America")


def calling_code(row):
    """Two or three digits; longer ones and shared ones (+1, +7) are left out."""
    code = row["idd"].get("root", "") + "".join(row["idd"].get("suffixes", [])[:2])
    digits = code.lstrip("+")
    one = len(row["idd"].get("suffixes", [])) == 1
    return digits if one and digits.isdigit() and 2 <= len(digits) <= 3 else None


def languages(row):
    return [v.split(" (")[0] for v in row["languages"].values()]


def currencies(row):
    return [c["name"] for c in row["currencies"].values()]


def demonym(row):
    word = row["demonyms"].get("eng", {}).get("f", "")
    plain = word and "," not in word and " or " not in word
    return word if plain and word != row["name"]["common"] else None


def facts(row):
    name, capital = row["name"]["common"], single(row["capital"])
    out = {"name": name, "iso": row["cca2"].lower(),
           # A capital that is the name's copy would be a fact without content.
           "capital": capital if capital != name else None,
           "currency": single(currencies(row)), "language": single(languages(row)),
           "region": region(row), "code": calling_code(row), "demonym": demonym(row)}
    for iso, relation in NOT_SINGLE:
        if out["iso"] == iso:
            out[relation] = None
    return out


def small(flag):
    return np.asarray(flag.resize(SMALL, Image.BOX), np.float32) / 255


def distance(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def choose(rows, flags):
    """Greedy, larger countries first, so that the better known of a pair stays."""
    kept, dropped = [], []
    seen = {r["cca2"]: small(flags[r["cca2"]]) for r in rows}
    for r in sorted(rows, key=lambda r: (-r["area"], r["cca2"])):
        near = [(distance(seen[r["cca2"]], seen[k["cca2"]]), k["name"]["common"]) for k in kept]
        worst = min(near, default=(9.0, ""))
        if worst[0] < MIN_DISTANCE:
            dropped.append({"name": r["name"]["common"], "near": worst[1],
                            "rms": round(worst[0], 4)})
        else:
            kept.append(r)
    return sorted(kept, key=lambda r: r["name"]["common"]), dropped


def unclear(row, by_code, kept, pick, relation):
    """Values that a question about this country's neighbours must not ask for:
    they also hold in a neighbour with several values or outside the table."""
    out = set()
    for code in row["borders"]:
        other = by_code[code]
        if code not in kept or facts(other)[relation] is None:
            out |= set(pick(other))
    return sorted(out)


def real(packages):
    """(table, flags, dropped): rows in alphabetical order, one 160x120 flag each."""
    every = json.loads((packages / "world-countries/countries.json").read_text())
    rows = [r for r in every if r["unMember"] and len(r["capital"]) == 1]
    svgs = packages / "flag-icons/flags/4x3"
    flags = {r["cca2"]: rasterise(svgs / (r["cca2"].lower() + ".svg"), CELL) for r in rows}
    kept, dropped = choose(rows, flags)
    by_code = {r["cca3"]: r for r in every}
    codes = {r["cca3"] for r in kept}
    table = []
    for r in kept:
        c = facts(r)
        # Both have to list the border (the table has one between India and Sri Lanka).
        c["neighbours"] = sorted(by_code[b]["name"]["common"] for b in r["borders"]
                                 if b in codes and r["cca3"] in by_code[b]["borders"])
        c["unclear"] = {"language": unclear(r, by_code, codes, languages, "language"),
                        "currency": unclear(r, by_code, codes, currencies, "currency")}
        table.append(c)
    shared = [v for v in (c["code"] for c in table) if v]
    for c in table:
        if shared.count(c["code"]) > 1:
            c["code"] = None
    return table, [flags[r["cca2"]] for r in kept], dropped


def real_words(packages):
    """Lower-case words of every place in the package, in all its languages."""
    out = set()
    for r in json.loads((packages / "world-countries/countries.json").read_text()):
        texts = [r["name"]["common"], r["name"]["official"], *r["capital"], *r["altSpellings"],
                 *languages(r), *currencies(r), r["region"], r["subregion"]]
        texts += [t["common"] for t in r["translations"].values()]
        texts += [d["f"] for d in r["demonyms"].values()]
        for text in texts:
            out |= {w.strip("(),.").lower() for w in text.split()}
    return out
