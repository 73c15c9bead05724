#!/bin/sh
# fuzz.sh BUILD SECONDS [JOBS]: build the fuzz targets, run each from its seed corpus for SECONDS. New inputs go to
# BUILD/corpus, never into the tree; a crash is kept in BUILD and ends the script with status 1.
set -eu
build=$1
seconds=$2
jobs=${3:-2}
targets=
for src in fuzz/fuzz_*.c; do targets="$targets $(basename "$src" .c)"; done
cmake --build "$build" -j "$jobs" --target $targets
for t in $targets; do
  name=${t#fuzz_}
  mkdir -p "$build/corpus/$name" "fuzz/corpus/$name"
  echo "== $t, $seconds s"
  if ! "$build/fuzz/$t" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
      -artifact_prefix="$build/crash-$name-" "$build/corpus/$name" "fuzz/corpus/$name" >"$build/$t.log" 2>&1; then
    tail -n 40 "$build/$t.log"
    echo "$t failed; the input is $build/crash-$name-*"
    exit 1
  fi
  grep -E 'number_of_executed_units|cov:' "$build/$t.log" | tail -n 2
done
