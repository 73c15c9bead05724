#!/bin/sh
# chiasm eval MODEL: the card on items of a tiny model: splits, slices, one and two brackets, promises, bad items.
. tests/cli/lib.sh

items=$T/items.jsonl
cp "$picture" "$T/p.png"
item() { # ID SPLIT FORM GROUP REST
  printf '{"id":"%s","split":"%s","form":"%s","group":"%s","entity_group":%s,%s}\n' "$1" "$2" "$3" "$3" "$4" "$5" >>"$items"
}
one='"relation":"capital","entity":"Peru","question":"What is the capital of [this country]?","answer":"Lima"'
two='"relation":"neighbor","entity":"Peru","question":"Which neighbor of [Peru] uses the [peso]?","answer":"Chile"'
subs='"constraints":[{"words":"this country","substitutes":[{"words":"that state","answer":"Oslo"}]}]'
both='"constraints":[{"words":"Peru","substitutes":[]},{"words":"peso","substitutes":[{"words":"euro","answer":"x"}]}]'
item t1 test fact '"A"' "$one,\"image\":\"p.png\",$subs,\"paraphrase\":\"this nation\""
item t2 test text_named '"C"' "$one"
item t3 test two_facts '"A"' "$two,\"image\":\"p.png\",$both"
item d1 dev fact null "$one,\"prior\":\"red\",\"twins\":{\"blank\":{\"image\":\"p.png\",\"question\":\"[x]?\",\"answer\":\"none\"}}"

works 'a card' eval "$tiny" --items "$items" --cells -q
check 'forms, groups and relations stand apart' grep -q '^two_facts / A / neighbor *1 ' "$T/out"
check 'the test split alone' grep -q '^all *3 ' "$T/out"
check 'one bracket' grep -q '^known, one constraint *1 ' "$T/out"
check 'two brackets' grep -q '^known, two constraints *1 ' "$T/out"
check 'as JSON' sh -c "'$chiasm' eval '$tiny' --items '$items' --json -q >'$T/j' && grep -q '\"split\": \"test\"' '$T/j'"
works 'all splits, with twins' eval "$tiny" --items "$items" --split all --twins -q -o "$T/o.csv"
check 'twins are counted' grep -q '^twins, blank: 1, ' "$T/out"
check 'priors are counted' grep -q '^against the training prior: 1 items' "$T/out"
check 'a row an item' sh -c "[ \$(wc -l <'$T/o.csv') = 5 ]"
works 'a limit' eval "$tiny" --items "$items" --limit 1 -q
check 'it counts the items of the split' grep -q '^all *1 ' "$T/out"
begin 'broken promises'
if "$chiasm" eval "$tiny" --items "$items" --require -q >"$T/out" 2>"$T/err"; then bad 'broken promises' 'ended with 0'
elif ! grep -q '^FAILED  items: 3 (needed 2000)' "$T/out"; then bad 'broken promises' "no such line: $(tail -3 "$T/out")"
elif ! grep -q "promises do not hold" "$T/err"; then bad 'broken promises' "$(cat "$T/err")"
else ok 'broken promises'; fi

fails 1 "no item belongs to the split 'train'" 'an unknown split' eval "$tiny" --items "$items" --split train
item t4 test fact null "$one,\"image\":\"missing.png\""
fails 1 'missing.png' 'a missing picture' eval "$tiny" --items "$items" -q
printf '{"id":"x","question":"[a]?","answer":"b","constraints":7}\n' >"$items"
fails 1 'line 1: constraints is not a list' 'constraints of another type' eval "$tiny" --items "$items" -q
printf '{"id":"x","question":"[a]?","answer":"b"}\n{"id":"x","question":"[a]?","answer":"b"}\n' >"$items"
fails 1 "id 'x' stands on lines 1 and 2" 'an id used twice' eval "$tiny" --items "$items" -q
