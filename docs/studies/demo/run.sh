#!/bin/sh
# The study of storage and transfer, from the beginning to the tables and figures beside this file.
#
#   docs/studies/demo/run.sh [MODEL [OUT [NAME]]]      from the repository root; models/demo, study-run/NAME and seed-1
#   docs/studies/demo/run.sh --text [OUT]              part R: SmolLM2 on the facts of known_1000.json (KNOWN names the file)
#
# CHIASM names the program (build/chiasm). PAIRS: items with two constraints of each form in the main run (60; of the second seed
# 35). KEEP: where tables and figures go, else here. LIMIT=N stops every run after N items, DRAWS=N draws less often. It can
# be stopped with anything: the same command goes on where it was.
set -eu
chiasm=${CHIASM:-build/chiasm}
here=docs/studies/demo
limit=${LIMIT:+--limit $LIMIT}

study() { # NAME WHAT DATASET OPTIONS...
  name=$1
  what=$2
  data=$3
  shift 3
  # shellcheck disable=SC2086
  "$chiasm" study "$what" "$data" --threads 1 --quiet $limit -o "$out/$name" "$@" >/dev/null
}
items() { # NAME OPTIONS...: a part of the test split
  name=$1
  shift
  "$chiasm" data convert models/demo/eval/items.jsonl -o "$out/$name.jsonl" "$@" >/dev/null
}
# The page and its tables stay in the run's folder; what the study's page quotes is copied.
report() { # NAME FIGURES...
  # shellcheck disable=SC2086
  "$chiasm" report "$out/$1" ${DRAWS:+--draws $DRAWS} >/dev/null
  cp "$out/$1/report/claims.csv" "$keep/$1.csv"
  name=$1
  shift
  for figure; do
    if [ -f "$out/$name/report/figures/$figure.png" ]; then cp "$out/$name/report/figures/$figure.png" "$keep/$name-$figure.png"; fi
  done
}

if [ "${1:-}" = --text ]; then
  out=${2:-study-run/text}
  keep=${KEEP:-$here}
  smol=models/cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  mkdir -p "$out"
  study known predict "${KNOWN:-known_1000.json}" --model "$smol" --max-new 4
  "$chiasm" data convert "${KNOWN:-known_1000.json}" --right "$out/known" -o "$out/right.jsonl"
  noise='--corrupt noise:3s,samples=10 --windows 6 --one-direction --null-draws 1 --dtype bf16'
  limit="--limit ${LIMIT:-50}"
  # shellcheck disable=SC2086
  {
    study known-mlp trace "$out/right.jsonl" --model "$smol" --sites mlp $noise \
      --roles 'first word token,last word token,next token,last token'
    study known-attn trace "$out/right.jsonl" --model "$smol" --sites attn $noise --roles 'last word token,last token'
  }
  for site in mlp attn; do report known-$site trace-item-noise-3s-samples=10-w6-all; done
  exit 0
fi

model=${1:-models/demo}
name=${3:-seed-1}
out=${2:-study-run/$name}
keep=${KEEP:-$here}/$name
mkdir -p "$out" "$keep"
pairs=${PAIRS:-60}

known='--split test --entity-group A,B'
# shellcheck disable=SC2086
{
  items main $known --form fact=260,two_flags=60,named_over=60,scene=60,two_facts=$pairs,two_scene=$pairs
  items windows $known --form fact=20,two_facts=18,two_scene=18
  items twins $known --form fact=30 --spread
  items second $known --form fact=20,named_over=10
  items wide $known --form fact=30,two_flags=10 --spread
  items cuts $known --form fact=60,two_flags=10,named_over=10,scene=10,two_facts=10,two_scene=10
}
items names --split test --entity-group A,B,C,Z --form fact
items hard --split test --hard --form fact,two_flags,named_over,text_named

one='--from-words --one-direction --null-draws 1'
# shellcheck disable=SC2086
{
  study main trace,contributions,attribute,predict "$out/main.jsonl" --model "$model" --corrupt substitute --windows 1 \
    --sites mlp,attn,embed $one
  study hard contributions,predict "$out/hard.jsonl" --model "$model"
  study names lens,probe,predict "$out/names.jsonl" --model "$model"
  study cuts knockout "$out/cuts.jsonl" --model "$model" --windows 3
  study windows trace "$out/windows.jsonl" --model "$model" --corrupt substitute --windows 1,3,6 --sites mlp,attn $one
  study wide trace "$out/wide.jsonl" --model "$model" --corrupt substitute --windows 3,6 --sites mlp,attn $one
  study twins trace "$out/twins.jsonl" --model "$model" --corrupt substitute --windows 1,6 --sites mlp,attn \
    --asks item,named,described --no-donor --from-words --one-direction --null-draws 0
  study second trace "$out/second.jsonl" --model "$model" --corrupt substitute --corrupt random --corrupt pool:5 \
    --corrupt picture --windows 1 --sites mlp,attn,hidden,hidden-no-mlp,hidden-no-attn $one
}

report main trace-item-substitute-w1-all
report hard
report names probe-entity
report cuts knockout-w3
report windows
report wide trace-item-substitute-w6-all
for run in twins second; do report $run; done

if [ -f "$model/planted/planted.jsonl" ]; then
  list=
  for layer in 3 6 9; do
    grep "\"layer\": $layer," "$model/planted/planted.jsonl" >"$out/facts-$layer.jsonl"
    items planted-$layer --form fact,text_flag --facts "$out/facts-$layer.jsonl"
    study planted-$layer trace,contributions,knockout,attribute,predict "$out/planted-$layer.jsonl" --model "$model" \
      --apply "$model/planted/layer-$layer.safetensors" --asks item,named --corrupt substitute --windows 1 --sites mlp \
      --from-words --one-direction --null-draws 0 --controls 0
    list="$list $out/planted-$layer:$layer"
  done
  # shellcheck disable=SC2086
  "$chiasm" study planted $list -o "$keep/planted.csv" >"$keep/planted.txt"
fi
