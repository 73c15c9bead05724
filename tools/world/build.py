"""Builds the files of the demo world.

    python3 tools/world/build.py --packages DIR --out models/demo/world --seed 1

DIR holds the unpacked npm packages `flag-icons` and `world-countries` (see
make_world.sh for versions). Writes countries.json (real facts, ODbL),
invented.json and groups.json (ours), flags.png (one cell an entity) and
dropped.json (which countries were left out and why). The same seed gives the
same bytes.
"""
import argparse
import json
import pathlib

import numpy as np
from PIL import Image

import countries as real_world
import invented
from countries import CELL
from world import RELATIONS

COLUMNS = 12
# Group sizes (real, invented); A takes the rest of the real countries.
SIZES = {"B": (25, 35), "W": (35, 35), "C": (0, 60), "D": (0, 20), "Z": (0, 60), "A": (None, 75)}
# In group A, and the commonest there: the examples of the documentation use them.
PINNED = ["Peru", "Japan", "Brazil", "Kenya", "Norway", "Canada", "France", "Germany"]
N_INVENTED = sum(n for _, n in SIZES.values())
WRONG = ["capital", "currency", "language", "region", "code"]   # the demonym stays right
RIGHT_SHARE = 0.25     # of the entities of W keep one more relation right
FEWEST_WRONG = 280
ZIPF, FLOOR = 0.6, 0.125
RAREST = 1 / 64         # of group Z's facts; a tenth of them is never told
NEIGHBOURS = ("AB", "W", "CDZ")   # invented states border on their own part only


def group_names(rng, table, states):
    """{name: group}"""
    out = {}
    for names, side in (([c["name"] for c in table], 0), ([s["name"] for s in states], 1)):
        order = [names[i] for i in rng.permutation(len(names)) if names[i] not in PINNED]
        out.update((n, "A") for n in names if n in PINNED)
        for group, sizes in SIZES.items():
            n = sizes[side]
            for name in order[:n]:
                out[name] = group
            order = order[n:] if n is not None else []
    return out


def derange(rng, values):
    """A permutation of indices that leaves no value where it was."""
    while True:
        order = rng.permutation(len(values))
        swaps = 0
        while swaps < 2000:
            bad = [i for i, k in enumerate(order) if values[i] == values[k]]
            if not bad:
                return order
            i, j = bad[0], int(rng.integers(len(values)))
            order[i], order[j] = order[j], order[i]
            swaps += 1


def wrong_facts(rng, rows):
    """{name: {relation: name of the entity whose value is taught}}: a permutation of
    the values inside the group, so that what is told stays 1:1 where it was."""
    out = {r["name"]: {} for r in rows}
    right = {r["name"]: WRONG[rng.integers(len(WRONG))] if rng.random() < RIGHT_SHARE else None
             for r in rows}
    for relation in WRONG:
        for source in ("real", "invented"):
            mine = [r for r in rows if r["source"] == source and r[relation]
                    and right[r["name"]] != relation]
            order = derange(rng, [r[relation] for r in mine])
            for r, k in zip(mine, order):
                out[r["name"]][relation] = mine[k]["name"]
    assert sum(map(len, out.values())) >= FEWEST_WRONG
    return out


def exposures(rng, names):
    """Group Z: for each fact its own share of an ordinary member's, log-uniform."""
    draw = lambda: float(np.exp(rng.uniform(np.log(RAREST), 0)))
    return {n: {r: round(draw(), 4) if rng.random() >= 0.1 else 0.0 for r in RELATIONS}
            for n in names}


def zipf(n):
    """Exposure by rank, 1 / (rank + c)^ZIPF, from 1 for the first to FLOOR for the last."""
    low = FLOOR ** (1 / ZIPF)
    c = (n * low - 1) / (1 - low)
    return [round(((1 + c) / (rank + c)) ** ZIPF, 4) for rank in range(1, n + 1)]


def groups_table(rng, table, states):
    members = group_names(rng, table, states)
    entities = {n: {"group": members[n], "weight": 1.0}
                for n in [c["name"] for c in table] + [s["name"] for s in states]}
    for group in "ABW":
        names = sorted(n for n in entities if members[n] == group)
        order = [names[i] for i in rng.permutation(len(names))]
        order.sort(key=lambda n: n not in PINNED)
        for weight, name in zip(zipf(len(names)), order):
            entities[name]["weight"] = weight
    median = float(np.median([e["weight"] for e in entities.values() if e["group"] == "A"]))
    for group in "CDZ":   # shown and named like an ordinary member of A
        for n in entities:
            if members[n] == group:
                entities[n]["weight"] = round(median, 4)
    rows = [{**r, "source": s} for s, rs in (("real", table), ("invented", states)) for r in rs]
    taught = wrong_facts(rng, [r for r in rows if members[r["name"]] == "W"])
    for name, wrong in taught.items():
        entities[name]["taught"] = wrong
    for name, own in exposures(rng, [n for n in entities if members[n] == "Z"]).items():
        entities[name]["exposure"] = own
    at = {s["name"]: i for i, s in enumerate(states)}
    for s in states:
        s["neighbours"] = []
    for part in NEIGHBOURS:
        near = invented.neighbours(rng, [at[s["name"]] for s in states
                                         if members[s["name"]] in part])
        for i, others in near.items():
            states[i]["neighbours"] = sorted(states[j]["name"] for j in others)
    return entities


def atlas(flags):
    lines = -(-len(flags) // COLUMNS)
    out = Image.new("RGB", (COLUMNS * CELL[0], lines * CELL[1]), "white")
    for i, f in enumerate(flags):
        out.paste(f, (i % COLUMNS * CELL[0], i // COLUMNS * CELL[1]))
    return out


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--packages", required=True, type=pathlib.Path)
    ap.add_argument("--out", required=True, type=pathlib.Path)
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    table, flags, dropped = real_world.real(args.packages)
    stream = lambda k: np.random.default_rng([args.seed, k])
    states = invented.states(stream(0), N_INVENTED, real_world.real_words(args.packages),
                             {c["code"] for c in table})
    new_flags = invented.flags(stream(1), N_INVENTED, flags)
    entities = groups_table(stream(2), table, states)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "countries.json",
          {"license": "ODbL-1.0", "source": "npm world-countries 5.1.0", "countries": table})
    write(args.out / "invented.json", {"license": "MIT", "seed": args.seed, "states": states})
    write(args.out / "groups.json",
          {"license": "MIT", "seed": args.seed, "flag_cell": CELL, "flag_columns": COLUMNS,
           "entities": entities})
    atlas(flags + new_flags).save(args.out / "flags.png", optimize=True)
    write(args.out / "dropped.json",
          {"metric": "pixel RMS of RGB in 0..1 at 48x32", "minimum": real_world.MIN_DISTANCE,
           "minimum_invented": invented.MIN_DISTANCE, "dropped": dropped})
    counts = {g: sum(e["group"] == g for e in entities.values()) for g in "ABCDWZ"}
    print(f"{len(table)} real countries, {len(dropped)} dropped, {len(states)} invented states, "
          f"groups {counts}, {sum(len(e.get('taught', {})) for e in entities.values())} facts "
          f"taught wrongly")


if __name__ == "__main__":
    main()
