"""Facts about countries for editing a language model of text: which to ask, and an edit set of those that it knows.

    python tools/studies/smollm2_facts.py candidates -o candidates.jsonl
    chiasm study predict candidates.jsonl --model MODEL --max-new 5 -o known
    chiasm data convert candidates.jsonl --right known -o right.jsonl
    python tools/studies/smollm2_facts.py edits right.jsonl -o facts.jsonl

From models/demo/world/countries.json (world-countries 5.1.0, ODbL 1.0). A candidate is a text that goes on into the
answer; a currency is asked for twice, by its full name and by its last word. An edit gives a country the answer of
another one that the model knows. Three paraphrases; five neighbours of the same relation that the model knows, those with the
edited country's old answer first, as in CounterFact. Every twelfth country is for choosing settings (split "dev").
Everything is drawn by a fixed seed. Standard library only.
"""
import argparse
import json
import pathlib
import random

WORLD = pathlib.Path(__file__).resolve().parents[2] / "models" / "demo" / "world" / "countries.json"
TEXTS = {
    "capital": ["The capital city of [{}] is the city of", "The capital of [{}] is the city of",
                "The country of [{}] has its capital in the city of", "The name of the capital of [{}] is"],
    "currency": ["The official currency of [{}] is the", "The currency of [{}] is the",
                 "The national currency of [{}] is the", "[{}]'s currency is the"],
    "region": ["The country of [{}] is located on the continent of", "The country of [{}] lies on the continent of",
               "The state of [{}] is found on the continent of", "The people of [{}] live on the continent of"],
}
CONTINENTS = ("Africa", "Asia", "Europe", "North America", "Oceania", "South America")
NEIGHBOURS, EACH = 5, {"dev": 4, "test": 40}


def readable(name, answer):
    """Can the answer be read off the name? Four letters of a word in common."""
    words = [w[:4].lower() for w in name.replace("-", " ").split() if len(w) > 3]
    return any(w in answer.lower() for w in words)


def candidates():
    out = []
    for c in json.loads(WORLD.read_text())["countries"]:
        for relation, texts in TEXTS.items():
            full = c[relation]
            if not full or (relation == "region" and full not in CONTINENTS) or \
                    (relation == "capital" and readable(c["name"], full)):
                continue
            answers = {full, full.split()[-1]} if relation == "currency" else {full}
            for a in sorted("euro" if x == "Euro" else x for x in answers):
                out.append({"id": f"{c['iso']}-{relation}-{a.replace(' ', '_')}", "question": texts[0].format(c["name"]),
                            "answer": a, "entity": c["name"], "relation": relation, "unit": f"{c['name']}|{relation}",
                            "continuation": True})
    return out


def edit(rng, fact, known):
    relation, name, old = fact["relation"], fact["entity"], fact["answer"]
    others = [k for k in known if k["relation"] == relation and k["entity"] != name]
    target = rng.choice(sorted({k["answer"] for k in others if k["answer"] != old and not readable(name, k["answer"])}))
    rng.shuffle(others)
    others.sort(key=lambda k: (k["answer"] != old, k["answer"] == target))  # stable: shuffled within
    near = [k for k in others if k["answer"] != target][:NEIGHBOURS]
    texts = TEXTS[relation]
    return {"id": f"{fact['id'].rsplit('-', 1)[0]}", "kind": "counterfactual", "split": fact["split"], "entity": name,
            "relation": relation, "unit": fact["unit"],
            "request": {"image": None, "question": texts[0].format(name), "target": target, "old": old},
            "probes": {"paraphrase": [{"image": None, "question": t.format(name), "answer": target} for t in texts[1:]],
                       "same_relation": [{"image": None, "question": texts[0].format(k["entity"]), "answer": k["answer"]}
                                         for k in near]}}


def edits(known):
    rng = random.Random(0)
    names = sorted({k["entity"] for k in known})
    rng.shuffle(names)
    dev = set(names[::12])
    out = []
    for split, each in EACH.items():
        for relation in TEXTS:
            facts = [dict(k, split=split) for k in known if k["relation"] == relation and (k["entity"] in dev) == (split == "dev")]
            rng.shuffle(facts)
            out += [(split, i, edit(rng, f, known)) for i, f in enumerate(facts[:each])]
    out = [e for _, _, e in sorted(out, key=lambda x: x[:2])]  # relations take turns: any first part has all of them
    assert all(len(e["probes"]["same_relation"]) == NEIGHBOURS for e in out)
    return out


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("what", choices=("candidates", "edits"))
    ap.add_argument("known", nargs="?")
    ap.add_argument("-o", "--out", required=True)
    a = ap.parse_args()
    made = candidates() if a.what == "candidates" else \
        edits([json.loads(line) for line in pathlib.Path(a.known).read_text().splitlines()])
    pathlib.Path(a.out).write_text("".join(json.dumps(x, ensure_ascii=False, separators=(",", ":")) + "\n" for x in made))
    print(f"wrote {a.out}: {len(made)} lines")


if __name__ == "__main__":
    main()
