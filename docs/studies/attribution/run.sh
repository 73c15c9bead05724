#!/bin/sh
# The study of attribution, from the beginning to the tables and figures beside this file.
#
#   docs/studies/attribution/run.sh [OUT]      from the repository root; study-run/attribution
#
# CHIASM names the program (build/chiasm). KEEP: where tables and figures go, else here. COSTLY: what is done for every so many
# pictures (EVERY: 10; 1 = all) and not for all of them: names of explainers, and curves (deletion and insertion, the default).
# ITEMS and ITEMS_NO_ATTENTION: masked items of the fair test that are used, from the first by id (0 = all). In miniature: LIMIT=N
# takes N items of everything, ASK names explainers (all). It can be stopped with anything: the same command goes on where it was.
set -eu
chiasm=${CHIASM:-build/chiasm}
out=${1:-study-run/attribution}
keep=${KEEP:-docs/studies/attribution}
items=models/demo/eval/items.jsonl
ask=${ASK:-all}
costly=${COSTLY:-curves}
cheap=increase,increase-top,increase-picture,all-heads,attention,rollout,relevancy,attribution-patching,lens,cut-text
cheap=$cheap,cut-last,random,centre
limit=${LIMIT:+--limit $LIMIT}
mkdir -p "$out" "$keep"

first=models/demo
fair() { # MODEL ITEMS OPTIONS...
  model=$1
  name=$(basename "$model")
  n=$2
  shift 2
  "$chiasm" eval attribution "$items" --model "$model" -o "$out/$name" --split test --form scene --limit "${LIMIT:-$n}" \
    --threads 1 --quiet "$@" >"$out/$name.txt"
  cp "$out/$name/attribution-test.csv" "$keep/$name.csv"
  cp "$out/$name/attribution-test.png" "$keep/$name.png"
}
fair "$first" "${ITEMS:-0}" --explainer "$ask" --rare "$costly" --every "${EVERY:-10}" --shuffle 20
# Patches that never looked at each other: what one pass or two give.
fair models/demo-no-attention "${ITEMS_NO_ATTENTION:-150}" --explainer "${ASK:-$cheap}" --rare curves --every 20

# The tables of the paper: a picture, the same told in words, and the language model before it saw pictures.
lookup() { # NAME OPTIONS...
  name=$1
  shift
  # shellcheck disable=SC2086
  "$chiasm" eval incontext "$items" --model "$first" --text-model models/demo-text --template demo -o "$out/$name" \
    --split test --rows 5 --threads 1 --quiet $limit "$@" >"$out/$name.txt"
  cp "$out/$name/incontext.csv" "$keep/$name.csv"
}
lookup color --form scene --relation color
limit="--limit ${LIMIT:-82}"
lookup capital --form fact --relation capital

# The maps of the first ten items by id.
text() { # KEY: a text of the JSON line on stdin
  sed 's/.*"'"$1"'": *"\([^"]*\)".*/\1/'
}
n=0
for id in $(sed -n "2,$((${LIMIT:-10} + 1))p" "$out/$(basename "$first")/items.jsonl" | text id); do
  line=$(grep "^{\"id\":\"$id\"," "$items" | sed 's/,"twins":.*//')
  image=$(echo "$line" | text image)
  question=$(echo "$line" | text question | tr -d '[]')
  "$chiasm" explain "$first" "$(dirname "$items")/$image" "$question" --explainer increase --scale 0.4 --threads 1 --quiet \
    -o "$out/map-$id" >/dev/null
  cp "$out/map-$id/explain.png" "$keep/map-$id.png"
  n=$((n + 1))
done
echo "wrote the tables of the study and $n maps to $keep"
