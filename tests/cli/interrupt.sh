#!/bin/sh
# Ctrl-C ends the work with status 130, one line, and nothing half-written.
. tests/cli/lib.sh

{ # many branches, each a full forward
  printf '{"format": "chiasm-plan-1", "branches": [{"name": "a"}'
  i=0
  while [ $i -lt 4000 ]; do
    printf ',\n{"name": "b%d", "parent": "a", "interventions": [{"op": "noise", "site": "embed", "rows": [1, 2], "scale": 1, "seed": %d}]}' $i $i
    i=$((i + 1))
  done
  printf '],\n"captures": [{"site": "resid_post", "layers": "all", "rows": "last"}]}\n'
} >"$T/plan.json"
# interrupted NAME SIGNAL. The demo model, as full forwards: minutes of work, so that the signal always meets it. On a machine
# so busy that the command has not got to its work after one second, a later signal does.
interrupted() {
  begin "$1"
  for pause in 1 4 10; do
    rm -rf "$T/o"
    # A shell starts background jobs with SIGINT ignored; env does not undo that, so the command runs in a shell that resets it.
    sh -c 'trap - INT TERM; exec "$@"' sh "$chiasm" run demo models/demo/samples/peru.png "$question" --plan "$T/plan.json" \
      --executor dense -o "$T/o" >"$T/out" 2>"$T/err" &
    pid=$!
    sleep $pause
    kill "-$2" $pid 2>/dev/null
    wait $pid
    rc=$?
    [ $rc = 130 ] && [ "$(wc -l <"$T/err")" = 1 ] && break
  done
  if [ $rc = 130 ] && [ "$(wc -l <"$T/err")" = 1 ] && grep -q cancelled "$T/err" && [ ! -s "$T/out" ] && [ ! -e "$T/o" ]; then ok "$1"
  else bad "$1" "ended with $rc: $(cat "$T/err"; ls -A "$T/o" 2>/dev/null)"; fi
}
interrupted 'Ctrl-C' INT
interrupted 'a scheduler ends it' TERM
