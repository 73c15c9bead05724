#!/bin/sh
# Editing through the program: one edit, several, their deltas; and everything that is refused, in one line, with nothing
# half-written and the checkpoint untouched.
. tests/cli/lib.sh

tiny2=tests/fixtures/tiny-list
target='--target there --edit-at last-prompt --layer 1'
base=$(cat $tiny/* | sha256sum)
nothing() { # NAME FILE: FILE is not there, nor anything that its writing would leave beside it
  begin "$1"
  if [ -z "$(ls -A "$2"* 2>/dev/null)" ]; then ok "$1"; else bad "$1" "left: $(ls -A "$2"*)"; fi
}

works 'an edit' edit "$tiny" "$picture" "$question" $target --steps 3 --donor "$tiny/donor.png" --paraphrase 'Name it.' -q -o "$T/a.delta"
check 'says what it did' grep -q 'multedit (ours): decoder.1.down' "$T/out"
check 'and elsewhere' grep -q 'other pictures: ' "$T/out"
works 'its JSON' edit "$tiny" "$picture" "$question" $target --steps 3 --method rome --json -q
check 'the identity is named' grep -q '"second_moment": "identity"' "$T/out"
works 'low-rank adapters' edit "$tiny" "$picture" "$question" --target there --method lora --layer 0-1 --rank 2 --steps 2 -o "$T/l.delta"
works 'delta show' delta show "$T/l.delta"
check 'both layers, rank 2' sh -c "[ \$(grep -c 'rank 2' '$T/out') = 2 ]"
works 'asked with the edit' ask "$tiny" "$picture" Why --apply "$T/a.delta" --json
sha=$(sha256sum <"$T/a.delta" | cut -d' ' -f1)
check 'its hash is in the result' grep -q "\"sha256\": \"$sha\"" "$T/out"

works 'fine-tuning of the tower' edit "$tiny" "$picture" "$question" --target there --method ft --layer 1 --weight vision.down --steps 2 -o "$T/v.delta" -q
works 'delta show, vision' delta show "$T/v.delta"
check 'the tower is changed' grep -q '^vision.1.down' "$T/out"
fails 2 '--weight is q, k' 'a weight that is not there' edit "$tiny" "$question" --target there --method ft --weight vision.proj1
fails 1 'has no picture' 'the tower without a picture' edit "$tiny" "$question" --target there --method ft --layer 1 --weight vision.down
fails 1 'decoder only' 'the tower by another method' edit "$tiny" "$picture" "$question" --target there --method lora --layer 1 --weight vision.down

abs=$(cd "$tiny" && pwd)
printf '{"image":"%s/picture.png","question":"What is [this]?","target":"there"}\n{"id":"t","question":"What is [Peru]?","target":"language"}\n' "$abs" >"$T/r.jsonl"
works 'several at once' edit "$tiny" --requests "$T/r.jsonl" --method memit --layer 0-1 --steps 2 -o "$T/m.delta"
works 'several, one after another' edit "$tiny" --requests "$T/r.jsonl" --sequential --layer 1 --steps 2 --json -o "$T/s.delta"
check 'each is told' sh -c "[ \$(grep -c after_own '$T/out') = 2 ]"
fails 2 'one edit at a time' 'several by a method of one' edit "$tiny" --requests "$T/r.jsonl"
fails 2 'give MODEL alone' 'a question beside the file' edit "$tiny" 'Why?' --requests "$T/r.jsonl"
fails 2 '--sequential needs --requests' 'sequential alone' edit "$tiny" 'Why [this]?' --target a --sequential
printf '{"question":"What is this?","target":"there"}\n' >"$T/r2.jsonl"
fails 1 "request line 1 (line 1): the question brackets no words" 'a request without a constraint' edit "$tiny" --requests "$T/r2.jsonl" --sequential -o "$T/n.delta"
nothing 'and no delta' "$T/n.delta"

# What cannot be edited.
fails 1 'no token' 'a target with no token' edit "$tiny" "$picture" "$question" --target ' ' -o "$T/n.delta"
fails 1 'brackets no words' 'no constraint' edit "$tiny" "$picture" 'What is this?' --target there -o "$T/n.delta"
fails 1 'finite' 'a loss that is not finite' edit "$tiny" "$picture" "$question" $target --lr 1e38 --clamp 0 -o "$T/n.delta"
fails 1 'has layers 0 to 3' 'a layer that is not there' edit "$tiny" "$picture" "$question" --target there --layer 9 -o "$T/n.delta"
fails 1 'prompt has rows 0 to' 'a row that is not there' edit "$tiny" "$picture" "$question" --target there --edit-at row:4000 -o "$T/n.delta"
fails 1 'at least two others' 'auto without pictures' edit "$tiny" "$picture" "$question" --target there --edit-at auto -o "$T/n.delta"
fails 1 'known are multedit' 'an unknown method' edit "$tiny" "$question" --target there --method magic -o "$T/n.delta"
fails 1 'does not use rank' 'a setting of another method' edit "$tiny" "$question" --target there --rank 3 -o "$T/n.delta"
fails 1 'no such' 'prefixes that are not there' edit "$tiny" "$question" --target there --prefixes "$T/no such" -o "$T/n.delta"
: >"$T/empty.txt"
fails 1 'empty.txt' 'no prefixes' edit "$tiny" "$question" --target there --prefixes "$T/empty.txt" -o "$T/n.delta"
nothing 'no delta of any of them' "$T/n.delta"

# Deltas where they do not belong.
fails 1 'made for another model' 'a delta for another model' ask "$tiny2" Why --apply "$T/a.delta"
fails 1 'no delta of chiasm' 'a file that is no delta' ask "$tiny" Why --apply "$tiny/model.safetensors"
head -c 200 "$T/a.delta" >"$T/cut.delta"
begin 'a cut delta'
"$chiasm" ask "$tiny" Why --apply "$T/cut.delta" >"$T/out" 2>"$T/err"
if [ $? = 1 ] && [ "$(wc -l <"$T/err")" = 1 ] && grep -q cut.delta "$T/err"; then ok 'a cut delta'; else bad 'a cut delta' "$(cat "$T/err")"; fi

# Files that cannot be written.
if [ -c /dev/full ]; then
  fails 1 '/dev/full' 'a full disk' edit "$tiny" "$picture" "$question" $target --steps 1 -o /dev/full
fi
fails 1 'no-folder' 'a folder that is not there' edit "$tiny" "$picture" "$question" $target --steps 1 -o "$T/no-folder/a.delta"
works 'export' export "$tiny" "$T/x" --apply "$T/a.delta" --export-dtype f32 -q
fails 1 'exists already' 'two exports to one folder' export "$tiny" "$T/x" --apply "$T/a.delta"
begin 'an export on a full disk'
mkdir "$T/limit"
(ulimit -f 8; exec "$chiasm" export "$tiny" "$T/limit/y" --apply "$T/a.delta") >"$T/out" 2>"$T/err"
if [ $? = 1 ] && [ "$(wc -l <"$T/err")" = 1 ] && [ -z "$(ls -A "$T/limit")" ]; then ok 'an export on a full disk'; else bad 'an export on a full disk' "$(cat "$T/err"; ls -A "$T/limit")"; fi

# Second moments.
works 'moments' moments "$tiny" --texts "$T/r.jsonl" --layers 1 --keys 20 -o "$T/k.safetensors" -q
works 'an edit that reads them' edit "$tiny" "$picture" "$question" $target --steps 2 --method rome --moments "$T/k.safetensors" -q
check 'and says how many keys' grep -q 'keys of .* prompts' "$T/out"
fails 1 "no F64 tensor 'decoder.2.mlp_act" 'moments of another layer' edit "$tiny" "$question" --target there --layer 2 --method rome --moments "$T/k.safetensors" -q
fails 1 'another model' 'moments of another model' edit "$tiny2" "$question" --target there --layer 1 --method rome --moments "$T/k.safetensors" -q
fails 1 "another 'asked'" 'other settings for the same file' moments "$tiny" --texts "$T/r.jsonl" --layers 1 --keys 21 -o "$T/k.safetensors"
fails 1 'layers 0 to 3' 'moments of a layer that is not there' moments "$tiny" --texts "$T/r.jsonl" --layers 7 -o "$T/k2.safetensors"
fails 2 '-o FILE is required' 'moments without a file' moments "$tiny" --texts "$T/r.jsonl"
fails 2 '--data FILE or --texts' 'moments of nothing' moments "$tiny" -o "$T/k2.safetensors"

# Edit sets.
works 'eval edits' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --steps 2 --others 1 --baselines -o "$T/log.jsonl"
check 'its rows' sh -c "grep -q '^random site' '$T/out' && grep -q '^none' '$T/out' && grep -q '^bias' '$T/out'"
lines=$(wc -l <"$T/log.jsonl")
works 'eval edits again' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --steps 2 --others 1 --baselines --json -o "$T/log.jsonl"
check 'nothing is done twice' sh -c "[ \$(wc -l <'$T/log.jsonl') = $lines ]"
fails 1 "its 'hyperparameters' differs" 'the log of another run' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --steps 3 --others 1 --baselines -o "$T/log.jsonl"
fails 1 'holds no edits of split dev' 'a split that is not there' eval edits "$T/r.jsonl" --model "$tiny" --split dev
works 'a row for every layer' eval edits "$T/r.jsonl" --model "$tiny" --sweep 0-1 --steps 2 --others 1 --probes 1 --before "$T/log.jsonl" -o "$T/sweep.jsonl"
check 'and the best' grep -q '^Highest headline: multedit layer' "$T/out"
works 'logs beside one another' eval compare "$T/r.jsonl" "$T/log.jsonl" "FT=$T/sweep.jsonl" --against none --compare 'multedit,FT multedit layer 1' \
  --draws 100 --csv "$T/c.csv" --figure "$T/c.png"
check 'their differences' grep -q '^Differences to none' "$T/out"
check 'as CSV' grep -q '^FT multedit layer 1,reliability,' "$T/c.csv"
check 'as a figure' test -s "$T/c.png"
works 'as JSON' eval compare "$T/r.jsonl" "$T/log.jsonl" --curve --draws 100 --json --figure "$T/c.svg"
check 'with the settings of the log' grep -q '"editors"' "$T/out"
works 'every second edit' eval compare "$T/r.jsonl" "$T/log.jsonl" --every 2 --draws 100 --json
check 'is one of two' grep -q '"n": 1' "$T/out"
fails 1 "two rows are called 'multedit'" 'two logs of one editor' eval compare "$T/r.jsonl" "$T/log.jsonl" "$T/log.jsonl"
fails 2 "no row is called 'mend'" 'a row that is not there' eval compare "$T/r.jsonl" "$T/log.jsonl" --against mend
fails 2 '--compare needs --against' 'rows compared with nothing' eval compare "$T/r.jsonl" "$T/log.jsonl" --compare none
fails 1 'another set' 'a log of another set' eval compare "$T/r2.jsonl" "$T/log.jsonl"
fails 1 'is no log' 'a file that is no log' eval compare "$T/r.jsonl" "$T/a.delta"
fails 1 "its 'set' is another" 'answers of another set' eval edits "$T/r2.jsonl" --model "$tiny" --layer 1 --steps 2 --before "$T/log.jsonl"
fails 2 '--sweep is a range' 'a range that is none' eval edits "$T/r.jsonl" --model "$tiny" --sweep 3-1
fails 2 'exclude each other' 'a layer and all layers' eval edits "$T/r.jsonl" --model "$tiny" --sweep 0-1 --layer 1
printf '{"id":"1","question":"What [now]?","answer":"x"}\n' >"$T/i.jsonl"
works 'a chain of edits' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --steps 2 --sequential 1,2 --untouched "$T/i.jsonl" -o "$T/chain.jsonl"
check 'says what became of other questions' grep -q '^1 questions that no edit was about' "$T/out"
check 'base and two points' [ "$(wc -l <"$T/chain.jsonl")" = 4 ]
works 'a chain as JSON' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --steps 2 --sequential 2 --json
fails 2 'is a rising list' 'points that fall' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --sequential 2,1
fails 1 'the set has 2 edits' 'a chain longer than the set' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --sequential 3
fails 2 'a chain of one method' 'a chain of several' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --sequential 1 --baselines
fails 2 'belongs to --sequential' 'untouched questions alone' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --untouched "$T/i.jsonl"
works 'a random site alone' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --steps 2 --others 1 --random-site --before "$T/log.jsonl" -o "$T/random.jsonl"
check 'is the row of --baselines' [ "$(grep -c '"random site|' "$T/random.jsonl")" = 2 ]
grep '"random site|' "$T/log.jsonl" >"$T/a.rows"
grep '"random site|' "$T/random.jsonl" >"$T/b.rows"
check 'with its bits' cmp "$T/a.rows" "$T/b.rows"
fails 2 'a row of one method' 'a random site and baselines' eval edits "$T/r.jsonl" --model "$tiny" --layer 1 --random-site --baselines
printf '{"question":"Why?"}\n' >"$T/bad.jsonl"
fails 1 "bad.jsonl: line 1: field 'target' is missing" 'a set with a missing field' eval edits "$T/bad.jsonl" --model "$tiny"

# Ctrl-C in the middle of an edit.
begin 'Ctrl-C'
for pause in 1 4 10; do
  sh -c 'trap - INT; exec "$@"' sh "$chiasm" edit "$tiny" "$picture" "$question" $target --steps 100000 --stop 0 -o "$T/i.delta" \
    >"$T/out" 2>"$T/err" &
  pid=$!
  sleep $pause
  kill -INT $pid 2>/dev/null
  wait $pid
  rc=$?
  [ $rc = 130 ] && [ "$(wc -l <"$T/err")" = 1 ] && break
done
if [ $rc = 130 ] && [ "$(wc -l <"$T/err")" = 1 ] && grep -q cancelled "$T/err" && [ -z "$(ls -A "$T"/i.delta* 2>/dev/null)" ]; then ok 'Ctrl-C'
else bad 'Ctrl-C' "ended with $rc: $(cat "$T/err")"; fi
check 'the checkpoint is as it was' [ "$(cat $tiny/* | sha256sum)" = "$base" ]
