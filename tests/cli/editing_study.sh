#!/bin/sh
# The commands of the editing study (docs/studies/editing/run.sh) on a few edits of the demo model.
. tests/cli/lib.sh

set_file=models/demo/edits/counterfactual.jsonl
common="--model models/demo --split test --limit 2 --probes 1 --others 1 -q"
frozen='--layer 2 --stop 0.2'

works 'no edit' eval edits $set_file --model models/demo --split test --limit 2 --method none -q -o "$T/none.jsonl"
works 'MultEdit' eval edits $set_file $common --before "$T/none.jsonl" --method multedit $frozen --trace -o "$T/m.jsonl"
check 'says both targets' [ "$(grep -c '"reliable":true' "$T/m.jsonl")" = 2 ]
check 'with tracing at the edited cell' [ "$(grep -c '"corrected":' "$T/m.jsonl")" = 2 ]
works 'fine-tuning' eval edits $set_file $common --before "$T/none.jsonl" --method ft --preset unconstrained --layer 9 --lr 4e-3 --stop 0.2 -o "$T/ft.jsonl"
check 'says both targets' [ "$(grep -c '"reliable":true' "$T/ft.jsonl")" = 2 ]
works 'as released' eval edits $set_file $common --before "$T/none.jsonl" --method multedit --preset released -o "$T/r.jsonl"
check 'says neither' [ "$(grep -c '"reliable":false' "$T/r.jsonl")" = 2 ]
works 'the table' eval compare $set_file --split test --limit 2 "none=$T/none.jsonl" "MultEdit=$T/m.jsonl" "FT=$T/ft.jsonl" "as released=$T/r.jsonl" \
  --against MultEdit --compare FT --draws 200 --csv "$T/t.csv"
check 'no edit keeps everything' sh -c "grep -q '^none,same_picture,1,1,1,2,' '$T/t.csv'"
check 'and says nothing new' grep -q '^none,headline,0,' "$T/t.csv"

mkdir -p "$T/study/test" "$T/study/sweep" "$T/study/planted"
for m in none:none multedit:m ft:ft released:r; do cp "$T/${m#*:}.jsonl" "$T/study/test/${m%:*}-counterfactual.jsonl"; done
check 'the page of tables' env CHIASM="$chiasm" OUT="$T/study" KEEP="$T/page" DRAWS=50 sh docs/studies/editing/run.sh tables
check 'has a row of each' [ "$(grep -c '^| \(none\|multedit\|ft\|released\) | 2 |' "$T/page/tables.md")" = 8 ]
check 'and a figure' test -s "$T/page/counterfactual.png"

awk -v dir="$T" -f docs/studies/editing/planted.awk models/demo/planted/planted.jsonl
check 'thirty planted facts for each layer' sh -c "[ \$(cat '$T'/planted-3.jsonl '$T'/planted-6.jsonl '$T'/planted-9.jsonl | wc -l) = 90 ]"
works 'planted facts, edited elsewhere' eval edits "$T/planted-6.jsonl" --model models/demo --apply models/demo/planted/layer-6.safetensors \
  --method multedit --stop 0.2 --sweep 5-6 --limit 2 -q -o "$T/p.jsonl"
check 'were there' sh -c "! grep -q '\"said_before\":\"\"' '$T/p.jsonl'"
works 'a chain' eval edits $set_file --model models/demo --split test --method multedit $frozen --sequential 1,2 \
  --untouched models/demo/eval/items.jsonl --untouched-limit 5 -q -o "$T/c.jsonl"
check 'asks five more' grep -q '^5 questions that no edit was about' "$T/out"
