#!/bin/sh
# A study under a real mpirun: two ranks store what one process stores. Skipped where there is no mpirun.
. tests/cli/lib.sh

if ! command -v mpirun >/dev/null 2>&1; then
  begin 'two ranks under mpirun'
  echo '[  SKIPPED ] two ranks under mpirun'
  exit 0
fi
awk -v dir="$PWD/$tiny" 'BEGIN {
  for (i = 0; i < 7; i++)
    printf "{\"id\": \"i%d\", \"image\": \"%s/picture.png\", \"question\": \"What is the %s of [this country]?\", \"answer\": \"x\", \"entity\": \"E%d\"}\n",
      i, dir, i % 2 ? "capital" : "flag", i
}' >"$T/items.jsonl"
# Ranks of one machine, started by root or not, with more ranks than cores if need be.
ranks() {
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 mpirun -n 2 "$@"
}
works 'one process' study trace,predict "$T/items.jsonl" --model "$tiny" --threads 1 --windows 1 --corrupt noise:3s,samples=1 -o "$T/one"
begin 'two ranks under mpirun'
if ranks "$chiasm" study trace,predict "$T/items.jsonl" --model "$tiny" --threads 1 --windows 1 --corrupt noise:3s,samples=1 -o "$T/two" >"$T/out" 2>"$T/err"; then
  ok 'two ranks under mpirun'
else
  bad 'two ranks under mpirun' "$(cat "$T/err")"
fi
digest() { "$chiasm" study status "$1" 2>/dev/null | sed -n 's/^digest: //p'; }
check 'the same rows' sh -c "[ -n '$(digest "$T/one")' ] && [ '$(digest "$T/one")' = '$(digest "$T/two")' ]"
check 'each rank had its share' sh -c "[ -f '$T/two/shard-1-of-2/run.sqlite' ] && [ -f '$T/two/shard-2-of-2/run.sqlite' ]"
check 'one rank speaks' sh -c "[ \$(grep -c 'items done' '$T/out') = 1 ]"
