"""Checks that training never showed what it was to leave out.

    python3 tools/demo_model/check_strings.py --model models/demo [FILE ...]

Reads the index that training wrote (default MODEL/train-strings.txt.gz), one line for
each different (form, entity, question, answer) and for each told sentence that names
an entity ("told", "", sentence, ""), and holds it against the world: no name, fact or neighbour question of group D; of group C names and
captions only; no fact of group B beside a picture; no wording that is held out; of
group W what is taught, not what is true. Twins in words that only lend a state for
comparison are no training text of their own and repeat a pictured question.
"""
import argparse
import gzip
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "world"))
import questions as q  # noqa: E402
from world import World  # noqa: E402


def held_out_patterns():
    """What only a held-out wording looks like."""
    for relation, wordings in q.WORDINGS.items():
        parts = re.split(r"\{[cv]\}", wordings[q.HELD_OUT])
        yield relation, re.compile(".*".join(map(re.escape, parts)) + "$")


def trained_patterns():
    for wordings in q.WORDINGS.values():
        for w in wordings[:q.HELD_OUT]:
            yield re.compile(".*".join(map(re.escape, re.split(r"\{[cv]\}", w))) + "$")


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True, type=pathlib.Path)
    ap.add_argument("files", nargs="*", type=pathlib.Path)
    args = ap.parse_args()
    world = World(args.model / "world")
    never = [e.name for e in world.of("D")]
    never_re = re.compile(r"(?<!\w)(" + "|".join(map(re.escape, never)) + r")(?!\w)")
    held, trained = list(held_out_patterns()), list(trained_patterns())
    clean, bad, count, forms = set(), [], 0, {}

    def complain(what, line):
        if len(bad) < 20:
            print(f"{what}: {line.strip()}")
        bad.append(what)

    for file in args.files or [args.model / "train-strings.txt.gz"]:
        reader = gzip.open if file.suffix == ".gz" else open
        for line in reader(file, "rt"):
            fields = line.rstrip("\n").split("\t")
            form, entity, question, answer = (fields if len(fields) == 4   # or told apart
                                              else fields[:2] + fields[3:])
            count += 1
            forms[form] = forms.get(form, 0) + 1
            # Bare words may be shared with other names: whole names only.
            if never_re.search(line):
                complain("group D", line)
            frame = re.sub(r"\[[^]]*\]", "[]", question)
            text = question.replace("[", "").replace("]", "")
            if frame not in clean:
                if any(p.match(text) for _, p in held) and not any(p.match(text)
                                                                   for p in trained):
                    complain("held-out wording", line)
                else:
                    clean.add(frame)
            e = world.by_name.get(entity)
            if e is None:
                continue
            naming = answer == e.name and not text.startswith(("Which neighbor", "In which n"))
            if e.group == "C" and not naming:
                complain("a fact of group C", line)
            if e.group == "B" and not form.startswith("text") and not naming:
                complain("a fact of group B beside a picture", line)
            if e.group == "W" and answer in [e.facts[r] for r in e.taught] and answer not in [
                    e.told(r) for r in ("name", *q.FACTS)]:
                complain("a truth of group W", line)
    print(f"{count} strings, " + ", ".join(f"{n} {f}" for f, n in sorted(forms.items())))
    print(f"{len(bad)} that should not be there")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
