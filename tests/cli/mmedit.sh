#!/bin/sh
# chiasm eval mmedit: methods and baselines, both ways through a file, the log, bad input in one line.
. tests/cli/lib.sh
records=tests/fixtures/mmedit/records.json
ask="eval mmedit --quiet --model $tiny --data $records --limit 4"

works 'nothing is edited' $ask --json
check 'no edit keeps every position' grep -A1 -F '"t_locality.same"' "$T/out"
check 'its value is 1' sh -c "grep -A1 -F '\"m_locality.same\"' '$T/out' | grep -qF '\"value\": 1.0'"
works 'a perfect edit' $ask --method ideal --no-generation
check 'which gets all' grep -qE 'M-generality +[0-9.]+ .*100\.0 \(100-100\)' "$T/out"
works 'a table of edits' $ask --method lookup
works 'the bias edit' $ask --method bias --protocol E4
works 'VLKEB strings' $ask --protocol vlkeb --no-generation
works 'the own template' $ask --protocol own --no-generation

works 'a run with a log' $ask --method multedit --layer 1 -o "$T/whole.jsonl"
cp "$T/out" "$T/first"
head -3 "$T/whole.jsonl" >"$T/cut.jsonl"
sed -n 4p "$T/whole.jsonl" | head -c 100 >>"$T/cut.jsonl" # stopped while it wrote
works 'a stopped run goes on' $ask --method multedit --layer 1 -o "$T/cut.jsonl"
check 'and its log is the same' cmp "$T/whole.jsonl" "$T/cut.jsonl"
works 'one thread' $ask --method multedit --layer 1 -o "$T/one.jsonl" --threads 1
check 'gives the same log' cmp "$T/whole.jsonl" "$T/one.jsonl"
check 'labels stand in it' grep -qF '"labels":[' "$T/whole.jsonl"
works 'the first part of two' $ask --method multedit --layer 1 -o "$T/part.jsonl" --shards 2 --shard 0
works 'the second part goes on in the same log' $ask --method multedit --layer 1 -o "$T/part.jsonl" --shards 2 --shard 1
check 'both are the whole' sh -c "sort '$T/part.jsonl' >'$T/a'; sort '$T/whole.jsonl' | cmp - '$T/a'"
fails 1 'method' 'a log of another method' $ask --method bias -o "$T/whole.jsonl"

works 'one after another' $ask --method multedit --layer 1 --sequential --gap 2
check 'two are asked' grep -qF ': 2 records, 2 edits later' "$T/out"
fails 1 'leaves nothing to ask' 'a gap as long as the file' $ask --sequential --gap 4

sed 's|"4.png"|"gone.png"|' $records >"$T/gone.json"
works 'missing pictures do not end a run' eval mmedit --quiet --model $tiny --data "$T/gone.json" \
  --images tests/fixtures/mmedit --limit 6 --no-generation
check 'and are counted' grep -qF '3 records; 3 skipped' "$T/out"

demos="--demos $records --encoder tests/fixtures/bert-tiny --demo-limit 8"
works 'in-context editing' $ask --method ike --contexts 2 $demos --no-generation
check 'asks every record' grep -qF 'method ike: 4 records' "$T/out"
works 'the new fact alone' $ask --method ike --preset bare --protocol own --no-generation
works 'demonstrations that do not fit' $ask --method ike --contexts 24 $demos --no-generation
check 'are counted' grep -qF '4 failed' "$T/out"
fails 2 'ike needs demonstrations' 'no demonstrations' $ask --method ike
fails 2 'go together' 'no encoder' $ask --method ike --contexts 2 --demos $records
fails 2 'belong to --method ike' 'demonstrations for another method' $ask --method bias $demos
fails 1 'none/config.json' 'no such encoder' $ask --method ike --contexts 2 --demos $records --encoder none
works 'one in-context edit' edit $tiny $picture "$question" --target Oslo --method ike --preset bare -o "$T/ike.delta"
works 'as a delta' ask $tiny $picture "$question" --apply "$T/ike.delta"
fails 1 'nothing to export' 'its export' export $tiny "$T/exported" --apply "$T/ike.delta"

fails 2 'needs --data' 'no data' eval mmedit --model $tiny
fails 2 'needs --shards above it' 'a part of no parts' $ask --shard 1
fails 2 'name a row' 'auto' $ask --method rome --edit-at auto
fails 1 'not what --task says' 'another task' $ask --task caption
fails 1 "no editing method 'x'" 'no such method' $ask --method x
echo '{"id": "a", "question": "[Who]?", "answer": "x"}' >"$T/ours.jsonl"
fails 1 'not a list of MMEdit' 'another data set' eval mmedit --model $tiny --data "$T/ours.jsonl"
fails 1 'none.json' 'no file' eval mmedit --model $tiny --data none.json
