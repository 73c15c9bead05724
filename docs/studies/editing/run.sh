#!/bin/sh
# Reruns the editing study (docs/studies/editing.md) from the repository root. Every log goes on where it was stopped.
#   docs/studies/editing/run.sh [STAGE...]     tune, equal, test, sweep, planted, chain, keys, tables; all of them if none is named
# CHIASM: the program. OUT: where the logs go. KEEP: where tables and figures go, else here. DRAWS: of bootstrap and swaps (10,000).
set -eu
chiasm=${CHIASM:-build/chiasm}
out=${OUT:-out/editing}
sets=models/demo/edits
here=docs/studies/editing
keep=${KEEP:-$here}
draws=${DRAWS:-10000}
moments=$out/moments.safetensors
encoder=models/cache/all-minilm-l6-v2
mkdir -p "$keep" "$out/tune" "$out/equal" "$out/test" "$out/sweep" "$out/planted" "$out/chain"
stages=${*:-tune equal test sweep planted chain keys tables}

log() { # LOG SET ARGUMENTS...: what a run printed stays beside its log and says that it is finished
  file=$1
  set_file=$2
  shift 2
  [ -s "$file.txt" ] && return
  "$chiasm" eval edits "$set_file" --model models/demo -q -o "$file.jsonl" "$@" >"$file.part"
  mv "$file.part" "$file.txt"
}
dev() { # NAME ARGUMENTS...: ten dev edits of the counterfactual set, one probe of each kind
  name=$1
  shift
  log "$out/tune/$name" $sets/counterfactual.jsonl --split dev --every 6 --probes 1 --others 1 --before "$out/tune/none.jsonl" "$@"
}
try() { # SET NAME ARGUMENTS...: 200 test edits of a set, one probe of each kind
  set=$1
  name=$2
  shift 2
  log "$out/test/$name-$set" $sets/$set.jsonl --split test --limit 200 --probes 1 --others 1 --before "$out/test/none-$set.jsonl" "$@"
}
sweep() { # NAME ARGUMENTS...: every layer alone, 60 test edits of the counterfactual set
  name=$1
  shift
  log "$out/sweep/$name" $sets/counterfactual.jsonl --split test --every 4 --probes 1 --others 1 \
    --before "$out/test/none-counterfactual.jsonl" --stop 0.2 --sweep 0-11 --trace "$@"
}
chain() { # NAME ARGUMENTS...: up to 100 edits, one on top of the other, and 500 other questions
  name=$1
  shift
  log "$out/chain/$name" $sets/counterfactual.jsonl --split test --sequential 1,10,100 \
    --untouched models/demo/eval/items.jsonl --untouched-limit 500 "$@"
}

# Settings, the best of those tried on the dev edits and then frozen; NAME_1: those of the first round where the second chose others.
multedit='--method multedit --layer 0 --stop 0.02'
multedit_1='--method multedit --layer 2 --stop 0.2'
rome="--method rome --moments $moments --layer 2 --stop 0.2"
memit="--method memit --moments $moments --layer 0-1 --stop 0.2"
memit_1="--method memit --moments $moments --layer 1-2 --stop 0.2"
ft='--method ft --preset unconstrained --layer 9 --lr 4e-3 --stop 0.02'
ft_1='--method ft --preset unconstrained --layer 9 --lr 4e-3 --stop 0.2'
ftc='--method ft --preset constrained --layer 9 --lr 4e-3 --max-change 4e-2 --stop 0.2'
ftc_1='--method ft --preset constrained --layer 9 --lr 4e-3 --max-change 2e-2 --stop 0.2'
lora='--method lora --layer 5 --lr 1e-2 --stop 0.2'
lora_1='--method lora --layer 9 --lr 2e-2 --stop 0.2'
bias='--method bias --goal 0.7'
bias_1='--method bias --goal 0.8'
demonstrations="--method ike --encoder $encoder --demos $sets/counterfactual.jsonl"
ike="$demonstrations --demo-limit 60 --contexts 3"
released='--method multedit --preset released'

prepare() { # second moments, and what the unedited model says
  [ -s "$moments" ] || "$chiasm" moments models/demo --data models/demo/eval/items.jsonl -o "$moments" -q
  [ -s "$out/tune/none.txt" ] || log "$out/tune/none" $sets/counterfactual.jsonl --split dev --every 6 --method none
  for set in counterfactual correction insertion; do
    log "$out/test/none-$set" $sets/$set.jsonl --split test --method none
  done
}

tune() {
  m='--method multedit'
  dev multedit-1 $m --layer 1
  dev multedit-2 $m --layer 2
  dev multedit-3 $m --layer 3
  dev multedit-2-stop $m --layer 2 --stop 0.2
  dev multedit-1-kl $m --layer 1 --kl 0.25
  dev multedit-last-prompt-4 $m --layer 4 --edit-at last-prompt
  dev multedit-last-prompt-8-stop $m --layer 8 --edit-at last-prompt --stop 0.2
  dev multedit-auto $m --edit-at auto
  r="--method rome --moments $moments"
  dev rome-2-identity --method rome --layer 2
  dev rome-1 $r --layer 1
  dev rome-2 $r --layer 2
  dev rome-2-stop $r --layer 2 --stop 0.2
  dev rome-last-prompt-4 $r --layer 4 --edit-at last-prompt
  f='--method ft --preset unconstrained --lr 4e-3'
  dev ft-1 $f --layer 1
  for l in 1 2 5 9; do dev ft-$l-stop $f --layer $l --stop 0.2; done
  c='--method ft --preset constrained --stop 0.2'
  dev ftc-1 $c --layer 1 --lr 2e-3 --max-change 2e-3
  dev ftc-2 $c --layer 2 --lr 4e-3 --max-change 5e-3
  dev ftc-9 $c --layer 9 --lr 4e-3 --max-change 5e-3
  dev ftc-9-wide $c --layer 9 --lr 4e-3 --max-change 1e-2
  dev ftc-9-wider $c --layer 9 --lr 4e-3 --max-change 2e-2
  e="--method memit --moments $moments --stop 0.2"
  for l in 1-2 1-3 2-3; do dev memit-$l $e --layer $l; done
  dev lora-9 --method lora --layer 9 --lr 2e-2 --stop 0.2
  for g in 0.5 0.8 0.95 0.99; do dev bias-$g --method bias --goal $g; done
  dev ike-bare --method ike --preset bare
  dev ike-4 $demonstrations --demo-limit 60 --contexts 4
}

one() { # NAME ARGUMENTS...: thirty dev edits
  name=$1
  shift
  log "$out/equal/$name" $sets/counterfactual.jsonl --split dev --every 2 --probes 1 --others 1 --before "$out/equal/none.jsonl" "$@"
}
equal() { # eight settings of each method
  log "$out/equal/none" $sets/counterfactual.jsonl --split dev --every 2 --method none
  for stop in 0.2 0.02; do
    for l in 0 1 2 3; do
      one multedit-$l-$stop --method multedit --layer $l --stop $stop
      one rome-$l-$stop --method rome --moments "$moments" --layer $l --stop $stop
    done
    for l in 0-1 1-2 1-3 2-3; do one memit-$l-$stop --method memit --moments "$moments" --layer $l --stop $stop; done
    for l in 1 2 5 9; do one ft-$l-$stop --method ft --preset unconstrained --layer $l --lr 4e-3 --stop $stop; done
  done
  for l in 1 2 5 9; do
    for c in 2e-2 4e-2; do one ftc-$l-$c --method ft --preset constrained --layer $l --lr 4e-3 --max-change $c --stop 0.2; done
    for r in 1e-2 2e-2; do one lora-$l-$r --method lora --layer $l --lr $r --stop 0.2; done
  done
  for g in 0.3 0.5 0.6 0.7 0.8 0.9 0.95 0.99; do one bias-$g --method bias --goal $g; done
  one ike-bare --method ike --preset bare
  for n in 1 2 3 4 6 8; do one ike-$n $demonstrations --demo-limit 60 --contexts $n; done
  one ike-4-all $demonstrations --demo-limit 0 --contexts 4
}

main_runs() {
  try counterfactual multedit $multedit --trace
  for set in correction insertion; do try $set multedit $multedit; done
  try counterfactual multedit-1 $multedit_1 --trace
  for set in correction insertion; do try $set multedit-1 $multedit_1; done
  for set in counterfactual correction insertion; do try $set ft-1 $ft_1; done
  try counterfactual memit-1 $memit_1
  try counterfactual ftc-1 $ftc_1
  try counterfactual lora-1 $lora_1
  try counterfactual random-1 $multedit_1 --random-site
  for set in counterfactual correction insertion; do
    try $set ft $ft
    try $set ftc $ftc
    try $set rome $rome
    try $set memit $memit
    try $set lora $lora
    try $set random $multedit --random-site
    try $set bias $bias
    try $set bias-1 $bias_1
    try $set released $released
    try $set ike $ike
  done
}

planted() {
  awk -v dir="$out/planted" -f $here/planted.awk models/demo/planted/planted.jsonl
  for layer in 3 6 9; do
    log "$out/planted/layer-$layer" "$out/planted/planted-$layer.jsonl" --apply models/demo/planted/layer-$layer.safetensors \
      --method multedit --stop 0.2 --sweep 0-11
  done
}

main_columns='headline reliability paraphrase rendering same_question same_picture p_target'
main_heads='headline|target said|paraphrase|rendering|(a)|(b)|p(target)'
rest_columns='text_twin one_hop reverse same_relation other_picture other_text right.unrelated_change'
rest_heads='by name|one hop|reverse|(c)|(d)|(e)|(d), (e): right less before'

markdown() { # CSV COLUMNS HEADS [REFERENCE]
  awk -F, -v cols="$2" -v heads="$3" -v plain='p_target key_cosine leak_share leak_share_max' -v differences="${4:-}" -f $here/table.awk "$1"
}
title_of() { # PATH: what stands before the dash of a figure
  name=$(basename "$1" .jsonl)
  echo "${name%%-*}, key at ${name#*-}"
}

dev_table() { # STAGE EVERY TITLE
  rows=
  for f in "$out/$1"/*.txt; do
    [ -s "$f" ] || continue
    name=$(basename "$f" .txt)
    [ "$name" = none ] || rows="$rows $name=$out/$1/$name.jsonl"
  done
  [ -n "$rows" ] || return 0
  printf '\n## %s\n\n' "$3" >>"$page"
  "$chiasm" eval compare --draws "$draws" $sets/counterfactual.jsonl --split dev --every "$2" $rows --csv "$keep/$1.csv" >/dev/null
  markdown "$keep/$1.csv" "$main_columns" "$main_heads" >>"$page"
}
bias_and_best() { # SET: the bias edit less the method with the largest headline (M6)
  set=$1
  [ -s "$out/test/bias-$set.jsonl" ] || return 0
  best=$(awk -F, '$2 == "headline" && $1 !~ /^(none|bias|bias-1|random|random-1|released)$/ && $3 > most { most = $3; name = $1 } END { print name }' "$keep/$set.csv")
  [ -n "$best" ] || return 0
  "$chiasm" eval compare --draws "$draws" $sets/$set.jsonl --split test --limit 200 bias="$out/test/bias-$set.jsonl" \
    $best="$out/test/$best-$set.jsonl" --against $best --compare bias --csv "$out/bias-$set.csv" >/dev/null
  awk -F, -v best=$best '$1 == "bias" && $2 == "headline" {
    printf "\nHeadline of the bias edit less that of %s, the best, in points: %.1f (%.1f to %.1f), p %.4f.\n", best, 100 * $8, 100 * $9, 100 * $10, $11
  }' "$out/bias-$set.csv" >>"$page"
}
keys_table() { # the edits' keys beside those of 50 other pictures
  rows=
  for m in multedit rome; do
    [ -s "$out/test/keys-$m.jsonl" ] && rows="$rows $m=$out/test/keys-$m.jsonl"
  done
  [ -n "$rows" ] || return 0
  "$chiasm" eval compare --draws "$draws" $sets/counterfactual.jsonl --split test --every 4 $rows --csv "$keep/keys.csv" >/dev/null
  printf '\n## Keys beside those of 50 other pictures: counterfactual\n\n' >>"$page"
  markdown "$keep/keys.csv" 'key_cosine leak_share leak_share_max' 'cosine|leak, mean of 50|leak, largest of 50' >>"$page"
}

tables() { # what the page speaks of, beside it: tables.md, every number as CSV, figures
  page=$keep/tables.md
  echo '# The editing study in numbers' >"$page"
  printf '\nMade by `%s/run.sh tables`. In percent but for p; in brackets 95 %% by bootstrap over entities.\n' $here >>"$page"
  dev_table tune 6 'Dev edits, first round: ten, first tries'
  dev_table equal 2 'Dev edits, second round: thirty, eight settings a method'
  for set in counterfactual correction insertion; do
    rows=
    for m in none multedit rome memit ft ftc lora ike bias random released multedit-1 memit-1 ft-1 ftc-1 lora-1 bias-1 random-1; do
      [ -s "$out/test/$m-$set.jsonl" ] && rows="$rows $m=$out/test/$m-$set.jsonl"
    done
    against=
    for m in multedit-1 multedit; do [ -s "$out/test/$m-$set.jsonl" ] && against=$m; done
    [ -n "$against" ] || continue
    tested=
    for m in ft ftc; do
      [ -s "$out/test/$m-$set.jsonl" ] || m=$m-1
      [ -s "$out/test/$m-$set.jsonl" ] && tested="$tested${tested:+,}$m"
    done
    "$chiasm" eval compare --draws "$draws" $sets/$set.jsonl --split test --limit 200 $rows --against $against ${tested:+--compare $tested} \
      --csv "$keep/$set.csv" --figure "$keep/$set.png" --title "$set edits of the demo model" >"$out/$set.txt"
    printf '\n## Test edits: %s\n\n' $set >>"$page"
    markdown "$keep/$set.csv" "$main_columns" "$main_heads" >>"$page"
    echo >>"$page"
    markdown "$keep/$set.csv" "$rest_columns" "$rest_heads" $against >>"$page"
    ! grep -q 'own less donor' "$out/$set.txt" || {
      printf '\nRank correlation over edits, tracing effect at the edited cell and p(target):\n\n'
      grep 'own less donor' "$out/$set.txt" | sed 's/^ */- /'
    } >>"$page"
    bias_and_best $set
  done
  keys_table
  for log in "$out"/sweep/*.jsonl; do
    [ -s "$log" ] || continue
    name=$(basename "$log" .jsonl)
    "$chiasm" eval compare --draws "$draws" $sets/counterfactual.jsonl --split test --every 4 "$log" --curve --csv "$keep/layers-$name.csv" \
      --figure "$keep/layers-$name.png" --title "$(title_of "$log")" >"$keep/layers-$name.txt"
    printf '\n## Layers: %s\n\n' "$(title_of "$log")" >>"$page"
    markdown "$keep/layers-$name.csv" "$main_columns" "$main_heads" >>"$page"
    grep -E '^(Highest|Over rows)' "$keep/layers-$name.txt" | sed 's/^/\n/' >>"$page"
  done
  for layer in 3 6 9; do
    [ -s "$out/planted/layer-$layer.jsonl" ] || continue
    "$chiasm" eval compare --draws "$draws" "$out/planted/planted-$layer.jsonl" "$out/planted/layer-$layer.jsonl" --curve \
      --csv "$keep/planted-$layer.csv" >"$out/planted-$layer.txt"
    printf '\n## Facts planted in layer %s\n\n' "$layer" >>"$page"
    markdown "$keep/planted-$layer.csv" 'headline reliability paraphrase same_question same_picture p_target' \
      'headline|target said|paraphrase|(a) others|(b) other relations|p(target)' >>"$page"
    grep "^Highest" "$out/planted-$layer.txt" | sed 's/^/\n/' >>"$page"
  done
  for f in "$out"/chain/*.txt; do
    [ -s "$f" ] || continue
    printf '\n## A chain of edits: %s\n\n```\n' "$(basename "$f" .txt)" >>"$page"
    grep -v '^wrote ' "$f" >>"$page"
    echo '```' >>"$page"
  done
}

case " $stages " in
  *' tune '* | *' equal '* | *' test '*)
    [ -f $encoder/model.safetensors ] || {
      echo "run.sh: no sentence encoder for in-context editing in $encoder: run scripts/get_encoder.sh first" >&2
      exit 1
    } ;;
esac
[ "$stages" = tables ] || prepare
for stage in $stages; do
  case $stage in
    tune) tune ;;
    equal) equal ;;
    test) main_runs ;;
    sweep)
      sweep multedit-constraint-last --method multedit
      sweep multedit-last-prompt --method multedit --edit-at last-prompt
      sweep rome-constraint-last --method rome --moments "$moments"
      ;;
    planted) planted ;;
    chain)
      for m in multedit rome memit ft ftc lora bias; do
        eval "settings=\$$m"
        chain $m $settings
      done
      chain multedit-1 $multedit_1
      ;;
    keys)
      for m in multedit rome; do
        eval "settings=\$$m"
        log "$out/test/keys-$m" $sets/counterfactual.jsonl --split test --every 4 --probes 1 --others 50 \
          --before "$out/test/none-counterfactual.jsonl" $settings
      done
      ;;
    tables) tables ;;
    *) echo "run.sh: no stage $stage" >&2; exit 2 ;;
  esac
done
