#!/bin/sh
# contributions and knockout: their files, defaults, dumped plans and refusals.
. tests/cli/lib.sh

works 'contributions' contributions "$tiny" "$picture" "$question" -o "$T/c"
for f in contributions.json contributions.csv contributions.safetensors layers.csv heads.csv curves.png curves.svg \
  heads.png heads.svg late.png late.svg patches.png patches.svg; do
  check "contributions write $f" test -s "$T/c/$f"
done
works 'contributions as JSON' contributions "$tiny" "$picture" "$question" --json
check 'from the picture to the constraint' sh -c "grep -q '\"from\": \"image\"' '$T/out' && grep -q '\"to\": \"constraint\"' '$T/out'"
works 'from the constraint' contributions "$tiny" "$picture" "$question" --from constraint --json --layers 1-2
check 'to the last row' grep -q '"to": "last"' "$T/out"
works 'without a picture' contributions tests/fixtures/tiny-llama 'What is [this]?' -o "$T/d" --layers 1
check 'no patches, no map of them' test ! -e "$T/d/patches.png"
fails 2 'say --from ROWS' 'nothing to start from' contributions tests/fixtures/tiny-llama 'What?'
fails 1 "rows 'constraint'" 'no constraint' contributions "$tiny" "$picture" 'What?' --to constraint
fails 1 'looks back only' 'backwards' contributions "$tiny" "$picture" "$question" --from last --to image
fails 1 'is not within' 'no such layer' contributions "$tiny" "$picture" "$question" --layers 99

works 'knockout' knockout "$tiny" "$picture" "$question" --window 50% --check 6 -o "$T/k" --dump-plan "$T/plan.json"
check 'the sweep has the dense bits' grep -q '6 of 6 cells bit-identical' "$T/out"
for f in knockout.json knockout.csv p.png p.svg logp.png logp.svg; do check "knockout writes $f" test -s "$T/k/$f"; done
check 'half of four layers' grep -q '"window": 2' "$T/k/knockout.json"
works 'its plan runs' run "$tiny" --plan "$T/plan.json" --json
p_of() { awk -v b="\"$2\"," '/"name":/ { on = ($0 ~ b) } on && /"p":/ { sub(/,$/, "", $2); print $2; exit }' "$1"; }
check 'the plan gives the same p' sh -c "
  a='$(p_of "$T/out" 'set 1 image:last, layer 2')'
  b=\$(awk -F, '\$1 == \"image:last\" && \$2 == \"own\" && \$5 == 2 { print \$8 }' '$T/k/knockout.csv')
  [ -n \"\$a\" ] && awk -v a=\"\$a\" -v b=\"\$b\" 'BEGIN { d = a - b; exit !(d < 1e-8 && d > -1e-8) }'"
works 'the same seed, the same controls' knockout "$tiny" "$picture" "$question" --json --seed 3
grep -v command "$T/out" >"$T/a"
works 'again, on one thread' knockout "$tiny" "$picture" "$question" --json --seed 3 --threads 1
check 'seed decides' sh -c "grep -v command '$T/out' | cmp - '$T/a'"
works 'no controls' knockout tests/fixtures/tiny-llama 'What is [this]?' --controls 0
fails 2 '--window' 'bad window' knockout "$tiny" "$picture" "$question" --window 0
fails 2 '--window' 'bad share' knockout "$tiny" "$picture" "$question" --window 120%
fails 1 'FROM:TO' 'bad edges' knockout "$tiny" "$picture" "$question" --edges image
fails 1 'nothing to cut' 'edges that look ahead' knockout "$tiny" "$picture" "$question" --edges last:image
fails 1 'without a picture' 'nothing to cut by default' knockout tests/fixtures/tiny-llama 'What?'

works 'a map with the span as one cell' trace "$tiny" "$picture" "$question" --corrupt noise:3s,samples=2 --cells span --window 50% --check 3 --json
check 'its window is half of four layers' grep -q '"window": 2' "$T/out"
check 'one cell of several rows' sh -c "[ \$(grep -c '\"rows\": [0-9]' '$T/out') = 1 ]"
fails 2 '--window' 'no window' trace "$tiny" "$picture" "$question" --window 2.5
