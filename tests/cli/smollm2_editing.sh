#!/bin/sh
# The study of editing SmolLM2 in miniature: its script with a tiny model, without the peer; and, where the model was fetched
# (scripts/get_models.sh), one of its edits, which must give the number in its table.
. tests/cli/lib.sh

here=docs/studies/smollm2-editing
nq=$T/nq.jsonl
printf '{"id":"%s","question":"who sings the %s there","answer":"a"}\n' a song b language c circle >"$nq"
begin 'the whole study'
if CHIASM=$chiasm PYTHON= FACTS=no MODEL=$tiny LAYERS=0-2 LIMIT=2 DRAWS=100 sh $here/run.sh "$nq" "$T/run" >"$T/out" 2>&1; then
  ok 'the whole study'
else
  bad 'the whole study' "$(tail -5 "$T/out")"
fi
for m in rome memit ft; do
  check "$m: two edits" sh -c "[ \$(grep -c '\"status\":\"ok\"' '$T/run/$m.jsonl') = 2 ]"
  check "$m: paraphrases and neighbours" sh -c "[ \$(grep -c '\"paraphrase\":{\"n\":3,.*\"same_relation\":{\"n\":5,' '$T/run/$m.jsonl') = 2 ]"
done
check 'with second moments' grep -q '"moments":"[^"]*moments.safetensors"' "$T/run/memit.jsonl"
check 'a table of the three' sh -c "grep -q '^ROME,reliability,' '$T/run/table.csv' && grep -q '^FT,same_relation,' '$T/run/table.csv'"

model=models/cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
[ -f $model ] && [ -f $here/edits.csv ] || exit 0
works 'an edit of the real model' eval edits $here/facts.jsonl --model $model --raw --split test --limit 1 --method ft --preset unconstrained \
  --layer 5 --steps 20 --stop 0.05 --lr 2e-3 -q -o "$T/ft.jsonl"
p=$(sed -n 's/.*"p_target":\([0-9.e-]*\).*/\1/p' "$T/ft.jsonl")
check 'its p(target) is the one of the table' awk -F, -v p="$p" '$1 == "ft" { exit !(sprintf("%.6f", p) == $4) }' $here/edits.csv
