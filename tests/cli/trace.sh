#!/bin/sh
# trace: several brackets, controls, donors that are found, severed states, heads, paths, dumped plans and refusals.
. tests/cli/lib.sh

two='What is the [capital] of [this country]?'
n='noise:3s,samples=1'
works 'two brackets' trace "$tiny" "$picture" "$two" --corrupt "$n" --sites mlp,head --random-sites 5 -o "$T/two"
for d in constraint1 constraint2 together; do
  for f in trace.json trace.csv trace.safetensors trace.png trace.svg heads.png heads.svg; do
    check "$d writes $f" test -s "$T/two/$d/$f"
  done
done
check 'each is told by its words' sh -c "grep -q \"constraint1: 'capital'\" '$T/out' && grep -q \"together: 'capital / this country'\" '$T/out'"
check 'random sites are told' grep -q 'random sites, head: 5 draws of 1 cell' "$T/out"
check 'a head is told as layer.head' grep -Eq '^head +[0-9]+\.[0-9]+ ' "$T/out"
check 'what was corrupted' sh -c "[ \$(grep -c '\"corrupted\": true' '$T/two/constraint2/trace.json') = 1 ] && [ \$(grep -c '\"corrupted\": true' '$T/two/together/trace.json') = 2 ]"
works 'several maps as JSON' trace "$tiny" "$picture" "$two" --corrupt "$n" --sites mlp --json
check 'a key each' sh -c "grep -q '^  \"constraint2\": {' '$T/out' && grep -q '^  \"together\": {' '$T/out'"
works 'one bracket of two' trace "$tiny" "$picture" "$two" --corrupt "$n" --sites mlp --brackets 2 --json
check 'it is the whole answer' grep -q '^  "maps": {' "$T/out"

works 'controls' trace "$tiny" "$picture" "$question" --corrupt random:2 --sites mlp,hidden-no-mlp,hidden-no-attn,embed \
  --direction both --donor-dir "$tiny" --groups 'late4;constraint' --random-sites 3 --check 5 --json --seed 7
grep -v command "$T/out" >"$T/a"
for w in '"noise": {' '"donor": {' '"random": {' 'donor.png' '"group": true' '"identical": 5' '"direction": "both"'; do
  check "the JSON has $w" grep -q "$w" "$T/out"
done
works 'again, on one thread' trace "$tiny" "$picture" "$question" --corrupt random:2 \
  --sites mlp,hidden-no-mlp,hidden-no-attn,embed --direction both --donor-dir "$tiny" --groups 'late4;constraint' \
  --random-sites 3 --check 5 --json --seed 7 --threads 1
check 'seed decides' sh -c "grep -v command '$T/out' | cmp - '$T/a'"
works 'a picture from a folder' trace "$tiny" "$picture" 'What is it?' --corrupt "picture:$tiny" --sites hidden --groups image
check 'another picture' grep -q 'the picture replaced by .*donor.png' "$T/out"

works 'paths' trace "$tiny" "$picture" "$question" --corrupt "$n" --sites path --path-to 2.1.v --check 5 -o "$T/p" \
  --dump-plan "$T/paths.json"
check 'paths have a figure' test -s "$T/p/paths.png"
check 'and no other' test ! -e "$T/p/trace.png"
works 'the plan of paths runs' run "$tiny" --plan "$T/paths.json" --json
works 'paths to the logits' trace "$tiny" "$picture" "$question" --corrupt "$n" --sites path --path-to out --path-direct --json
check 'where to' grep -q '"direct": true' "$T/out"

works 'lens: its plan' lens "$tiny" "$picture" "$two" --rows constraint2 --dump-plan "$T/lens.json"
works 'the plan of a lens runs' run "$tiny" --plan "$T/lens.json" -o "$T/lens.safetensors"
works 'contributions: controls and plan' contributions "$tiny" "$picture" "$question" --controls --dump-plan "$T/c.json" -o "$T/c"
check 'the late patches beside controls' sh -c "head -1 '$T/c/layers.csv' | grep -q late_share_shuffled_by_content && test -s '$T/c/positions.png'"
works 'the plan of contributions runs' run "$tiny" --plan "$T/c.json" -o "$T/c.safetensors"
works 'attribute: its plan' attribute "$tiny" "$picture" "$question" --dump-plan "$T/attr.json"
works 'the plan of an attribution runs' run "$tiny" --plan "$T/attr.json" -o "$T/attr.safetensors"

item() { printf '{"id": "%s", "image": "%s", "donor": "%s", "question": "%s", "answer": "x", "group": "fact", "relation": "r", "entity": "E"}\n' "$1" "$PWD/$picture" "$PWD/$tiny/donor.png" "$2"; }
{ item one "$question"; item two "$two"; } >"$T/items.jsonl"
works 'a study over one bracket and two' study trace,contributions "$T/items.jsonl" --model "$tiny" --windows 1 --corrupt "$n" -o "$T/run"
check 'both items are done' grep -q '2 items done, 0 skipped, 0 failed' "$T/out"

fails 2 'go together' 'paths to nowhere' trace "$tiny" "$picture" "$question" --sites path
fails 1 'LAYER.HEAD.q' 'no such receiver' trace "$tiny" "$picture" "$question" --corrupt "$n" --sites path --path-to 2.1
fails 1 'layers 1 to 3' 'a receiver without senders' trace "$tiny" "$picture" "$question" --corrupt "$n" --sites path --path-to 0.1.q
fails 2 'two ways' 'two donors' trace "$tiny" "$picture" "$question" --corrupt "$n" --donor x.png --donor-dir "$tiny"
fails 1 'holds no picture' 'a folder without pictures' trace "$tiny" "$picture" "$question" --corrupt "$n" --donor-dir tests/fixtures/kernel
fails 1 'bracket' 'a third bracket' trace "$tiny" "$picture" "$two" --corrupt "$n" --brackets 3
fails 2 'one map' 'a plan of several maps' trace "$tiny" "$picture" "$two" --corrupt "$n" --dump-plan "$T/x.json"
check 'nothing half-written' test ! -e "$T/x.json"
fails 1 "rows 'late'" 'no picture, no late patches' trace tests/fixtures/tiny-llama 'What is [this]?' --corrupt "$n" --groups late
