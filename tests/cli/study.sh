#!/bin/sh
# Studies over a data set: the store after any interruption, in any number of shards or ranks, on any batch, is the same;
# what an item lacks is its own failure; what does not belong to a run is refused.
. tests/cli/lib.sh

# Items over the tiny model's pictures; $1 of them from number $2 on.
items() {
  awk -v n="$1" -v at="${2:-0}" -v dir="$PWD/$tiny" 'BEGIN {
    split("capital currency language name colour border river flag", w, " ")
    for (i = at; i < at + n; i++)
      printf "{\"id\": \"i%02d\", \"image\": \"%s/picture.png\", \"donor\": \"%s/donor.png\", \"question\": \"What is the %s of [this country%s]?\", \"answer\": \"x\", \"group\": \"fact\", \"relation\": \"%s\", \"entity\": \"E%d\"}\n",
        i, dir, dir, w[i % 8 + 1], i % 3 ? "" : " here", w[i % 8 + 1], i % 5
  }'
}
digest() { "$chiasm" study status "$1" 2>/dev/null | sed -n 's/^digest: //p'; }
same() { check "$1" sh -c "[ -n '$2' ] && [ '$2' = '$3' ]"; }
run=
study() { # ITEMS DIR OPTIONS...; with run=exec the shell becomes the program, so that a signal meets it
  data=$1
  dir=$2
  shift 2
  $run "$chiasm" study trace,predict "$data" --model "$tiny" --threads 1 --sites mlp,hidden --windows 1,2 --corrupt noise:3s,samples=1 --one-direction --null-draws 1 -o "$dir" "$@"
}

items 24 >"$T/items.jsonl"
works 'all studies' study all "$T/items.jsonl" --model "$tiny" --limit 3 --windows 1,2 --corrupt noise:3s,samples=1 --corrupt picture -o "$T/all"
check 'all studies: every item done' grep -q '3 items done, 0 skipped, 0 failed' "$T/out"
works 'the same items with twins' study predict "$T/items.jsonl" --model "$tiny" --limit 2 --asks item,named -o "$T/twins"
for i in 1 2 3; do
  printf '{"id": "t%d", "image": "%s/picture.png", "question": "Is [this country] near [that river]?", "answer": "x", "entity": "E%d", "twins": {"named": {"question": "Is [Peru] near?", "answer": "x"}}}\n' $i "$PWD/$tiny" $i
done >"$T/two.jsonl"
printf '{"id": "t4", "form": "one", "image": "%s/picture.png", "question": "Is [this country] near?", "answer": "x", "entity": "E4"}\n' "$PWD/$tiny" >>"$T/two.jsonl"
works 'two brackets and a twin' study trace,contributions,lens "$T/two.jsonl" --model "$tiny" --threads 1 --asks item,named --windows 1 --corrupt random --corrupt noise:3s,samples=1 -o "$T/brackets"
works 'their report' report "$T/brackets" --draws 100 -o "$T/report"
for what in 'item,random,mlp,1,own' 'item,random@1,attn,1,noise' 'item,random@2,hidden,1,own' 'item,"noise:3s' 'named,random,mlp,1,own' 'second words' 'all words' 'late patches'; do
  check "the report has $what" grep -q "$what" "$T/report/maps.csv"
done
check 'one bracket has nothing alone' sh -c "! grep -q 'named,random@' '$T/report/maps.csv'"
works 'of a form without a second bracket' report "$T/brackets" --form one --keep-wrong --draws 100 -o "$T/report-one"
check 'only of that form' sh -c "grep -q 'filtered,item,random,' '$T/report-one/maps.csv' && ! grep -q 'filtered,item,random@' '$T/report-one/maps.csv'"
check 'the page has its figures' sh -c "[ \$(grep -c 'src=\"data:image/svg+xml;base64,' '$T/report/report.html') -ge 5 ]"
works 'a report of everything' report "$T/all" --draws 100

begin 'an undisturbed run'
from=$(date +%s%N)
if study "$T/items.jsonl" "$T/whole" >"$T/out" 2>"$T/err"; then ok 'an undisturbed run'; else bad 'an undisturbed run' "$(cat "$T/err")"; fi
took=$((($(date +%s%N) - from) / 1000000))
ref=$(digest "$T/whole")

# Kill -9 at 20 random moments; a store that is complete before that makes room for a new one.
kills=0
round=0
first=
while [ $kills -lt 20 ] && [ $round -lt 200 ]; do
  round=$((round + 1))
  if [ -f "$T/killed/run.sqlite" ] && "$chiasm" study status "$T/killed" 2>/dev/null | grep -q 'state: finished'; then
    first=$(digest "$T/killed")
    rm -rf "$T/killed"
  fi
  run=exec study "$T/items.jsonl" "$T/killed" >/dev/null 2>&1 &
  pid=$!
  sleep "$(awk -v s="$round" -v t="$took" 'BEGIN { srand(s); printf "%.3f", (0.02 + 0.25 * rand()) * t / 1000 }')"
  if kill -9 $pid 2>/dev/null; then kills=$((kills + 1)); fi
  wait $pid 2>/dev/null
done
check "killed $kills times" [ $kills = 20 ]
check 'the last one goes on' study "$T/items.jsonl" "$T/killed"
# Kills may be so quick that none of the earlier runs came to its end.
same 'the first run that was killed and finished is the undisturbed one' "$ref" "${first:-$(digest "$T/killed")}"
same 'and has the undisturbed rows' "$ref" "$(digest "$T/killed")"

for n in 2 4; do
  list=
  i=1
  while [ $i -le $n ]; do
    study "$T/items.jsonl" "$T/s$n-$i" --shard $i/$n >/dev/null 2>"$T/err" || cat "$T/err"
    if [ $i -le 2 ]; then list="$list $T/s$n-$i"; else list="$list --with $T/s$n-$i"; fi
    i=$((i + 1))
  done
  # shellcheck disable=SC2086
  works "merging $n shards" study merge $list -o "$T/merged$n"
  same "$n shards are the whole" "$ref" "$(digest "$T/merged$n")"
done
study "$T/items.jsonl" "$T/batch" --batch 1 --mem 64M >/dev/null 2>&1
same 'one item a sweep' "$ref" "$(digest "$T/batch")"
study "$T/items.jsonl" "$T/limit" --limit 5 >/dev/null 2>&1
study "$T/items.jsonl" "$T/limit" >/dev/null 2>&1
same 'a part first, then the rest' "$ref" "$(digest "$T/limit")"

# As mpirun starts them: rank 0 waits and merges.
for r in 1 2 0; do
  OMPI_COMM_WORLD_RANK=$r OMPI_COMM_WORLD_SIZE=3 study "$T/items.jsonl" "$T/ranks" >"$T/rank$r" 2>&1 &
done
wait
same 'three ranks are the whole' "$ref" "$(digest "$T/ranks")"
check 'only rank 0 speaks' sh -c "[ -s '$T/rank0' ] && ! [ -s '$T/rank1' ] && ! [ -s '$T/rank2' ]"

fails 1 "another value of 'settings' (seed: 0 there, 5 here): use another folder" 'other settings' study trace,predict "$T/items.jsonl" --model "$tiny" --sites mlp,hidden --windows 1,2 --corrupt noise:3s,samples=1 --one-direction --null-draws 1 -o "$T/whole" --seed 5
fails 1 "another value of 'model_hash'" 'another model' study trace,predict "$T/items.jsonl" --model tests/fixtures/tiny-mha --sites mlp,hidden --windows 1,2 --corrupt noise:3s,samples=1 --one-direction --null-draws 1 -o "$T/whole"
items 3 1 >"$T/others.jsonl"
fails 1 "another value of 'data_hash'" 'another data set' study trace,predict "$T/others.jsonl" --model "$tiny" --sites mlp,hidden --windows 1,2 --corrupt noise:3s,samples=1 --one-direction --null-draws 1 -o "$T/whole"
fails 1 'asks: "item,named" there, "item" here' 'merging other settings' study merge "$T/all" "$T/twins" -o "$T/no"
fails 1 'exists already' 'merging onto a run' study merge "$T/s2-1" "$T/s2-2" -o "$T/whole"
fails 1 'there is no such store' 'status of nothing' study status "$T/nothing"
fails 1 "there is no study 'sing'" 'no such study' study sing "$T/items.jsonl" --model "$tiny" -o "$T/x"
fails 1 "no token is 'lost token'" 'no such role' study trace "$T/items.jsonl" --model "$tiny" --roles 'lost token' -o "$T/x"
fails 1 "'sung' is no form of an item" 'no such form' study trace "$T/items.jsonl" --model "$tiny" --asks sung -o "$T/x"
fails 2 "--shard: '5/4'" 'shard out of range' study trace "$T/items.jsonl" --model "$tiny" --shard 5/4 -o "$T/x"
fails 2 '-o DIR is required' 'no folder' study trace "$T/items.jsonl" --model "$tiny"
check 'nothing was made' [ ! -e "$T/x" ]

# What an item lacks is its own failure.
{
  items 2
  printf '{"id": "gone", "image": "%s/none.png", "question": "What is [this]?", "answer": "x"}\n' "$T"
  printf '{"id": "bare", "image": "%s/picture.png", "question": "What is this?", "answer": "x"}\n' "$PWD/$tiny"
  printf '{"id": "i01", "image": "%s/picture.png", "question": "What is [this]?", "answer": "x"}\n' "$PWD/$tiny"
  printf '{"id": "broken", "image": "%s/items.jsonl", "question": "What is [this]?", "answer": "x"}\n' "$T"
  items 2 4
} >"$T/mixed.jsonl"
works 'items that cannot be done' study predict "$T/mixed.jsonl" --model "$tiny" -o "$T/mixed"
check 'counted, the others done' grep -q '4 items done, 1 skipped, 3 failed' "$T/out"
check 'with their reasons' sh -c "grep -q none.png '$T/out' && grep -q 'brackets no words' '$T/out' && grep -q items.jsonl '$T/out'"

# Two writers: the second is told.
run=exec study "$T/items.jsonl" "$T/two" >/dev/null 2>&1 &
pid=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do if [ -f "$T/two/run.sqlite" ]; then break; fi; sleep 0.02; done
kill -STOP $pid 2>/dev/null
fails 1 'is being written by another process' 'two writers' study trace,predict "$T/items.jsonl" --model "$tiny" --sites mlp,hidden --windows 1,2 --corrupt noise:3s,samples=1 --one-direction --null-draws 1 -o "$T/two"
kill -CONT $pid 2>/dev/null
wait $pid
same 'the first is not disturbed' "$ref" "$(digest "$T/two")"

# A full disk: what is finished stays, and the run goes on later.
begin 'a full disk'
(
  ulimit -f 64
  study "$T/items.jsonl" "$T/full" >"$T/out" 2>"$T/err"
)
if [ "$(wc -l <"$T/err")" = 1 ] && grep -q 'make room and give the same command again' "$T/err"; then ok 'a full disk'; else bad 'a full disk' "$(cat "$T/err")"; fi
study "$T/items.jsonl" "$T/full" >/dev/null 2>&1
same 'goes on when there is room' "$ref" "$(digest "$T/full")"
