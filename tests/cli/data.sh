#!/bin/sh
# chiasm data check: every problem by row and field, and a status that says whether there is one.
. tests/cli/lib.sh

cat >"$T/good.jsonl" <<'END'
{"id": "a", "question": "What is the capital of [this country]?", "answer": "Lima"}
END
works 'a data set without problems' data check "$T/good.jsonl"
check 'what it holds' grep -qF '1 items, 1 can be used' "$T/out"

cp "$T/good.jsonl" "$T/bad.jsonl"
cat >>"$T/bad.jsonl" <<'END'
{"id": "b", "question": "What is [this?", "answer": "x"}
{"id": "a", "question": "[Who]?", "answer": "x"}
{"id": "c", "question": "[Who]?", "answer": "x", "image": "gone.png"}
END
begin 'problems end with status 1 and are listed'
"$chiasm" data check "$T/bad.jsonl" >"$T/out" 2>"$T/err"
rc=$?
if [ $rc != 1 ]; then bad 'problems end with status 1 and are listed' "ended with $rc"
elif ! grep -qF '3 of 4 items cannot be used' "$T/err"; then bad 'problems end with status 1 and are listed' "$(cat "$T/err")"
else ok 'problems end with status 1 and are listed'; fi
check 'an open bracket' grep -qF 'row 2, question: the bracket at byte 8' "$T/out"
check 'an id twice' grep -qF "row 3, id: 'a' stands on row 1 already" "$T/out"
check 'a missing picture' grep -qF "row 4, image: no picture 'gone.png'" "$T/out"
"$chiasm" data check "$T/bad.jsonl" --json >"$T/out" 2>/dev/null
check 'the same as JSON' grep -qF '"kind": "duplicate-id"' "$T/out"

printf 'index,question,subject\n1,a,b\n' >"$T/columns.csv"
fails 1 'main_entity and image_url; this file has: index, question, subject' 'other columns' data check "$T/columns.csv"
printf 'index,question,main_entity,image_url\n1,"a,this,x\n' >"$T/quote.csv"
fails 1 'line 2: a quote is opened and never closed' 'an open quote' data check "$T/quote.csv"
fails 1 'no such file' 'no file' data check "$T/nowhere.csv"
fails 2 'check is the one action' 'another action' data move "$T/good.jsonl"

works 'converted to our items' data convert "$T/bad.jsonl" -o "$T/kept.jsonl"
check 'without those that cannot be used' grep -qF '1 of 4 items (3 cannot be used)' "$T/out"
works 'what was converted can be read' data check "$T/kept.jsonl"
fails 1 'none of its 4 items is left' 'nothing left' data convert "$T/bad.jsonl" --split dev -o "$T/none.jsonl"
check 'and nothing written' test ! -e "$T/none.jsonl"

# A part of the forms: as many as asked for, a smaller part within a larger one, by group and hard split.
items=models/demo/eval/items.jsonl
works 'a part of two forms' data convert $items --split test --form fact=20,two_facts=5 --entity-group A,B -o "$T/p25.jsonl"
works 'a smaller part' data convert $items --split test --form fact=8 --entity-group A,B -o "$T/p8.jsonl"
works 'the hard split' data convert $items --split test --hard --form fact=3 -o "$T/p3.jsonl"
check 'as many as asked for' sh -c "[ \$(wc -l <'$T/p25.jsonl') = 25 ] && [ \$(wc -l <'$T/p8.jsonl') = 8 ] && [ \$(grep -c two_facts '$T/p25.jsonl') -ge 5 ]"
check 'the smaller lies in the larger' sh -c "[ \$(sort '$T/p8.jsonl' '$T/p25.jsonl' | uniq -d | wc -l) = 8 ]"
works 'spread over entities' data convert $items --split test --form fact=40 --entity-group A --spread -o "$T/p40.jsonl"
check 'one item an entity' sh -c "[ \$(grep -o '\"entity\": *\"[^\"]*\"' '$T/p40.jsonl' | sort -u | wc -l) = 40 ]"
check 'groups and the hard split' sh -c "! grep -q '\"entity_group\": *\"[CDWZ]\"' '$T/p25.jsonl' && [ \$(grep -c '\"hard\": *true' '$T/p3.jsonl') = 3 ]"
head -2 models/demo/planted/planted.jsonl >"$T/facts.jsonl"
works 'named facts' data convert $items --form fact,text_flag --facts "$T/facts.jsonl" -o "$T/named.jsonl"
check 'these and no others' sh -c "[ \$(wc -l <'$T/named.jsonl') = 2 ] && grep -q Krasro '$T/named.jsonl' && grep -q Lina '$T/named.jsonl'"
echo '{"entity": "Peru"}' >"$T/facts.jsonl"
fails 1 'facts.jsonl' 'no relation' data convert $items --facts "$T/facts.jsonl" -o "$T/none.jsonl"
fails 1 "no item of form 'song'" 'no such form' data convert $items --form song -o "$T/none.jsonl"
fails 2 "'fact=x' is not NAME or NAME=COUNT" 'no count' data convert $items --form fact=x -o "$T/none.jsonl"
fails 2 'needs -o FILE' 'convert without a target' data convert "$T/good.jsonl"
