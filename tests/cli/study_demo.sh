#!/bin/sh
# The study of storage and transfer in miniature: one item a run, from the script that made its tables.
. tests/cli/lib.sh

begin 'the whole study'
if CHIASM=$chiasm KEEP=$T/keep LIMIT=1 DRAWS=100 sh docs/studies/demo/run.sh models/demo "$T/run" small >"$T/out" 2>&1; then
  ok 'the whole study'
else
  bad 'the whole study' "$(tail -5 "$T/out")"
fi
for run in main maps names hard cuts twins second; do
  check "$run: a table of claims" grep -q '^claim,statistic,value,lo,hi' "$T/keep/small/$run.csv"
  check "$run: its item done" sh -c "'$chiasm' study status '$T/run/$run' | grep -q '1 items done, 0 skipped, 0 failed'"
done
check 'a figure of each kind' sh -c "ls '$T'/keep/small/maps-trace-item-substitute-w1-all.png '$T/keep/small/maps-trace-item-substitute-w6-all.png' '$T/keep/small/cuts-knockout-w3.png'"
check 'planted facts, every layer and method' sh -c "grep -q '^item,D,3,11,' '$T/keep/small/planted.csv' && grep -q '^named,attribution,9,0,' '$T/keep/small/planted.csv'"
