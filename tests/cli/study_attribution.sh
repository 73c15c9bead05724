#!/bin/sh
# The study of attribution in miniature: two items, from the script that made its tables.
. tests/cli/lib.sh

begin 'the whole study'
if CHIASM=$chiasm KEEP=$T/keep LIMIT=2 ASK=increase,attention,cut-text,random,centre COSTLY=cut-text,curves \
  sh docs/studies/attribution/run.sh "$T/run" >"$T/out" 2>&1; then
  ok 'the whole study'
else
  bad 'the whole study' "$(tail -5 "$T/out")"
fi
check 'the fair test: both items count' grep -q '^2 items, 2 answered right, 2 counted' "$T/run/demo.txt"
check 'its table: every explainer' sh -c "[ \$(grep -c ',auprc,2,' '$T/keep/demo.csv') = 12 ]"
check 'what is costly, of the first picture alone' grep -q '^cut-text,0,auprc,1,' "$T/keep/demo.csv"
check 'the other model' grep -q '^increase,0,auprc,' "$T/keep/demo-no-attention.csv"
check 'figures' sh -c "ls '$T/keep/demo.png' '$T/run/demo/deletion-pixel-blur.png' '$T/run/demo/insertion-cut-text.svg'"
for run in color capital; do
  check "$run: both models" grep -q '^bare described,mrr_answer,' "$T/keep/$run.csv"
done
check 'the first items by id' sh -c "ls '$T'/keep/map-t0009.png && [ \$(ls '$T'/keep/map-*.png | wc -l) = 2 ]"
