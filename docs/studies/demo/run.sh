#!/bin/sh
# The study of storage and transfer, from the beginning to the tables and figures beside this file.
#
#   docs/studies/demo/run.sh [MODEL [OUT [NAME]]]      from the repository root; models/demo, study-run/NAME and seed-1
#   docs/studies/demo/run.sh --text [OUT]              part R: SmolLM2 on the facts of known_1000.json (KNOWN names the file)
#
# CHIASM names the program (build/chiasm). KEEP: where tables and figures go, else here; figures are of the first training alone.
# RUNS="main maps" does these alone. LIMIT=N stops every run after N items, DRAWS=N draws less often. It can be stopped with
# anything: the same command goes on where it was.
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
  case $keep in */seed-[2-9]) return 0 ;; esac
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
keep=${KEEP:-$here}/${3:-seed-1}
out=${2:-study-run/${3:-seed-1}}
mkdir -p "$out" "$keep"

wanted() { # RUN...: which of RUNS this is, all where nothing is said
  case " ${RUNS:-main maps names hard cuts twins second planted} " in *" $1 "*) return 0 ;; esac
  return 1
}
known='--split test --entity-group A,B'
one='--from-words --one-direction --null-draws 1'

# shellcheck disable=SC2086
if wanted main || wanted maps; then
  items main $known --form fact=260,two_flags=60,named_over=60,scene=60,two_facts=60,two_scene=60
fi
if wanted main; then
  study main contributions,attribute,predict "$out/main.jsonl" --model "$model"
  report main
fi
# shellcheck disable=SC2086
if wanted maps; then
  study maps trace "$out/main.jsonl" --model "$model" --corrupt substitute --windows 1,3,6 --sites mlp,attn,embed $one
  report maps trace-item-substitute-w1-all trace-item-substitute-w6-all
fi
if wanted names; then
  items names --split test --entity-group A,B,C,Z --form fact
  study names lens,probe,predict "$out/names.jsonl" --model "$model"
  report names probe-entity
fi
if wanted hard; then
  items hard --split test --hard --form fact,two_flags,named_over,text_named
  study hard contributions,predict "$out/hard.jsonl" --model "$model"
  report hard
fi
# shellcheck disable=SC2086
if wanted cuts; then
  items cuts $known --spread \
    --form fact=120,two_flags=20,named_over=20,scene=20,two_facts=20,two_scene=20
  study cuts knockout "$out/cuts.jsonl" --model "$model" --windows 3
  report cuts knockout-w3
fi
# shellcheck disable=SC2086
if wanted twins; then
  items twins $known --form fact=120 --spread
  study twins trace "$out/twins.jsonl" --model "$model" --corrupt substitute --windows 1,6 --sites mlp,attn \
    --asks item,named,described --no-donor --from-words --one-direction --null-draws 0
  report twins
fi
# shellcheck disable=SC2086
if wanted second; then
  items second $known --form fact=90,named_over=30 --spread
  study second trace "$out/second.jsonl" --model "$model" --corrupt substitute --corrupt random --corrupt pool:5 \
    --corrupt picture --windows 1 --sites mlp,attn,hidden,hidden-no-mlp,hidden-no-attn $one
  report second
fi

if wanted planted && [ -f "$model/planted/planted.jsonl" ]; then
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
