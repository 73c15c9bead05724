#!/bin/sh
# The study of attribution, from the beginning to the tables and figures beside this file.
#
#   docs/studies/attribution/run.sh [OUT]      from the repository root; study-run/attribution
#
# CHIASM names the program (build/chiasm). MODELS: folders that are studied; one that is not there is left out. EVERY: what is
# costly is done for every so many pictures (10; 1 = all). KEEP: where tables and figures go, else here. LIMIT=N takes the first
# N items, and ASK names explainers (all) and COSTLY the costly ones of them. It can be stopped with anything: the same command
# goes on where it was.
set -eu
chiasm=${CHIASM:-build/chiasm}
out=${1:-study-run/attribution}
keep=${KEEP:-docs/studies/attribution}
items=models/demo/eval/items.jsonl
ask=${ASK:-all}
costly=${COSTLY:-remove-zero,remove-mean,remove-blur,remove-noise,occlude,integrated-gradients,curves}
limit=${LIMIT:+--limit $LIMIT}
mkdir -p "$out" "$keep"

first=models/demo
for model in ${MODELS:-models/demo models/demo-no-attention}; do
  if [ ! -f "$model/config.json" ]; then
    echo "$model is not there: left out" >&2
    continue
  fi
  name=$(basename "$model")
  # shellcheck disable=SC2086
  "$chiasm" eval attribution "$items" --model "$model" -o "$out/$name" --split test --form scene --explainer "$ask" \
    --rare "$costly" --every "${EVERY:-10}" --shuffle 20 --threads 1 --quiet $limit >"$out/$name.txt"
  cp "$out/$name/attribution-test.csv" "$keep/$name.csv"
  cp "$out/$name/attribution-test.png" "$keep/$name.png"
done

# The tables of the paper: a picture, the same told in words, and the language model before it saw pictures.
lookup() { # NAME ROWS OPTIONS...
  name=$1
  rows=$2
  shift 2
  # shellcheck disable=SC2086
  "$chiasm" eval incontext "$items" --model "$first" --text-model models/demo-text --template demo -o "$out/$name" \
    --split test --rows "$rows" --threads 1 --quiet $limit "$@" >"$out/$name.txt"
  cp "$out/$name/incontext.csv" "$keep/$name.csv"
}
lookup color-5 5 --form scene --relation color
lookup color-20 20 --form scene --relation color
limit="--limit ${LIMIT:-120}"
lookup capital-5 5 --form fact --relation capital

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
