#!/bin/sh
# chiasm explain and chiasm eval attribution: refusals in one line, a test that is stopped goes on, text-only prompts.
. tests/cli/lib.sh
set=tests/fixtures/explain/items.jsonl

works 'list' explain --list
check 'every explainer of the table' sh -c "[ \$(wc -l <'$T/out') = \$(grep -c '^CHI_EXPLAINER(' src/analyze/explain/explainers.def) ]"
works 'two explainers' explain "$tiny" "$picture" "$question" -e attention,cut-text -o "$T/explain" --quiet
check 'files' sh -c "[ \$(ls '$T/explain' | wc -l) = 4 ]"
fails 1 'the prompt has none' 'heads without a picture' attribute "$tiny" 'Why?' --heads picture:2
works 'attribute without a picture' attribute "$tiny" 'Why?' -o "$T/text" --quiet
check 'no overlay without a picture' sh -c "[ ! -e '$T/text/patches.png' ]"
fails 2 'explain needs MODEL IMAGE QUESTION' 'explain without a picture' explain "$tiny" 'Why?'
fails 1 "there is no explainer 'eyes'" 'unknown explainer' explain "$tiny" "$picture" Why -e eyes
fails 1 "'#400' is outside the vocabulary" 'token outside the vocabulary' explain "$tiny" "$picture" Why --answer '#400'
fails 1 "'#400' is outside the vocabulary" 'attribute: token outside' attribute "$tiny" "$picture" Why --answer '#400'
fails 1 'there is no head 9_0' 'a head that does not exist' attribute "$tiny" "$picture" Why --heads 9_0

fails 2 '-o DIR is required' 'a test without a folder' eval attribution "$set"
fails 1 "no way of removing 'acid'" 'unknown removal' eval attribution "$set" -m "$tiny" -o "$T/x" --by acid
fails 1 "in split 'train'" 'no such split' eval attribution "$set" -m "$tiny" -o "$T/x" --split train
fair="eval attribution $set -m $tiny --per-picture 0 -e increase,cut-text,random --quiet"
works 'a fair test' $fair -o "$T/a"
check 'one item counts, one failed' grep -q '4 items, 2 answered right, 1 counted' "$T/out"
check 'the crop that missed the object is told' grep -q 'the crop leaves 100 % of the object out' "$T/a/items.jsonl"
mkdir "$T/b" && head -c 1200 "$T/a/items.jsonl" >"$T/b/items.jsonl"
works 'goes on after half a line' $fair -o "$T/b"
check 'the same items' cmp "$T/a/items.jsonl" "$T/b/items.jsonl"
check 'the same table' cmp "$T/a/attribution-test.csv" "$T/b/attribution-test.csv"
fails 1 'belongs to another run' 'other settings on the same log' $fair -o "$T/a" --seed 9
fails 2 "'eyes' is neither curves" 'costly ones that nobody asked for' $fair -o "$T/x" --rare eyes
fails 1 "'lens' is not asked for" 'compared with what is not there' $fair -o "$T/x" --against lens
works 'costly ones for every second picture' $fair -o "$T/c" --rare cut-text,curves --every 2
check 'the first picture has them' cmp "$T/a/attribution-test.csv" "$T/c/attribution-test.csv"

works 'heads' heads "$tiny" "$picture" "$question" --neurons 3 --head 1_2 -o "$T/heads" --dump-plan "$T/heads.plan" --quiet
check 'heads: its plan runs' "$chiasm" run "$tiny" --plan "$T/heads.plan" --quiet
fails 2 '--head takes one head' 'heads: two heads' heads "$tiny" Why --neurons 3 --head 1_2,1_3
fails 1 'there is no head 7_0' 'heads: no such head' heads "$tiny" Why --neurons 3 --head 7_0
works 'query side' attribute "$tiny" "$picture" "$question" --attn-neurons 5 --query 4 -o "$T/query" --quiet
check 'query side: a file' grep -q '"embedding"' "$T/query/query.json"
works 'attribute without heads' attribute "$tiny" Why --zero-heads 0_0,1_1 --quiet
fails 1 'there is no head 4_0' 'attribute: zero a head that does not exist' attribute "$tiny" Why --zero-heads 4_0
works 'in context' incontext "$tiny" "$picture" 'What is the capital of this country?' --rival '#20' --object '#281' --text 'What is it?' --quiet
fails 1 "'#400' is outside the vocabulary" 'in context: token outside' incontext "$tiny" Why --rival '#400'
fails 2 '--text-model needs --text' 'in context: a model without a question' incontext "$tiny" Why --text-model "$tiny"
fails 1 'rows would not correspond' 'in context: a longer swap' incontext "$tiny" Why --swap 'What is the capital of it?'
fails 1 'needs value neurons' 'query side of nothing' attribute "$tiny" Why --query 4

fails 2 '-o DIR is required' 'in-context test without a folder' eval incontext "$set"
fails 1 "relation 'taste'" 'in-context test of no item' eval incontext "$set" -m "$tiny" -o "$T/x" --relation taste
lookup="eval incontext $set -m $tiny --text-model $tiny --rows 3 --heads 4 --quiet"
works 'in-context test' $lookup -o "$T/l"
check 'in-context test: a table' grep -q '^item,mrr_answer,' "$T/l/incontext.csv"
mkdir "$T/m" && head -c 1500 "$T/l/items.jsonl" >"$T/m/items.jsonl"
works 'in-context test goes on' $lookup -o "$T/m"
check 'in-context test: the same lines' cmp "$T/l/items.jsonl" "$T/m/items.jsonl"
