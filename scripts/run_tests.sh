#!/bin/sh
# run_tests.sh [BUILD [PATTERN]]: run every BUILD/tests/test_*, the fuzz targets over their seed corpora and tests/cli/*.sh
# (which get BUILD in the environment) from the repository root, JOBS at a time. One line per failing test; the last line
# is "N passed, N failed, N skipped". The exit status is 1 if anything failed. Complete outputs stay in BUILD/tests/log/.
# TEST_TIMEOUT seconds per executable.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
pattern=${2:-}
export BUILD="$build"
export TEST_LOG="$build/tests/log"
export TEST_TIMEOUT="${TEST_TIMEOUT:-600}"
export CHI_TEST_TMP="$build/tests/tmp"
# Sanitizer builds only: leaks of libraries that are not ours.
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0${LSAN_OPTIONS:+:$LSAN_OPTIONS}"
rm -rf "$TEST_LOG" "$CHI_TEST_TMP"
mkdir -p "$TEST_LOG" "$CHI_TEST_TMP" || exit 1

# One executable. A fuzz target is one test: its seed corpus runs without a crash.
if [ -z "${RUN_ONE:-}" ]; then
  RUN_ONE='
    exe=$0
    name=$(basename "$exe")
    log=$TEST_LOG/$name
    case $name in
      fuzz_*) set -- "fuzz/corpus/${name#fuzz_}" ;;
      *.sh) set -- "$exe"; exe=sh ;;
      *) set -- ;;
    esac
    start=$(date +%s)
    # The inner shell takes the message that a shell prints when a program dies of a signal.
    { timeout -k 5 "$TEST_TIMEOUT" "$exe" "$@" >"$log.out" 2>&1; rc=$?; } 2>/dev/null
    echo "$rc $(($(date +%s) - start))" >"$log.rc"'
fi
# A source that is gone leaves its old executable behind: run only what has a source.
list=$(for src in tests/test_*"$pattern"*.c fuzz/fuzz_*"$pattern"*.c; do
  exe="$build/tests/$(basename "$src" .c)"
  if [ -f "$src" ] && [ -x "$exe" ]; then echo "$exe"; fi
done
for sh in tests/cli/*"$pattern"*.sh; do
  if [ -f "$sh" ] && [ "$sh" != tests/cli/lib.sh ] && [ -x "$build/chiasm" ]; then echo "$sh"; fi
done)
if [ -z "$list" ]; then
  echo "no tests in $build/tests; build first (make build)"
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
fi
echo "$list" | xargs -n 1 -P "${JOBS:-2}" sh -c "$RUN_ONE"

echo "$list" | awk -v logdir="$TEST_LOG" '
  function report(test, why) {
    failed++
    gsub(/[[:space:]]+/, " ", why)
    sub(/^ /, "", why)
    if (length(why) > 400) why = substr(why, 1, 400) "..."
    print "FAIL " name " " test (why == "" ? "" : ": " why)
  }
  function died(rc) {
    if (rc == 124 || rc == 137) return "stopped by the time limit (or killed)"
    if (rc > 128) return "ended by signal " (rc - 128)
    return "ended with status " rc
  }
  {
    n = split($0, part, "/"); name = part[n]
    rc = -1; secs = 0
    if ((getline line < (logdir "/" name ".rc")) > 0) { split(line, f, " "); rc = f[1]; secs = f[2] }
    close(logdir "/" name ".rc")
    planned = 0; seen = 0; cur = ""; msg = ""; san = ""; here = failed; summary = 0
    file = logdir "/" name ".out"
    while ((getline line < file) > 0) {
      if (line ~ /^\[=+\] Running [0-9]+ test/) { split(line, f, " "); planned += f[3]; summary = 0 }
      else if (line ~ /^\[=+\] [0-9]+ test\(s\) run/) { summary = 1 }
      else if (line ~ /^\[ RUN +\] /) { cur = line; sub(/^\[ RUN +\] /, "", cur); msg = "" }
      else if (cur != "" && !summary && line ~ /^\[ +OK +\] /) { passed++; seen++; cur = "" }
      else if (cur != "" && !summary && line ~ /^\[ +SKIPPED +\] /) { skipped++; seen++; print "SKIP " name " " cur (msg == "" ? "" : ": " msg); cur = "" }
      else if (cur != "" && !summary && line ~ /^\[ +FAILED +\] /) { report(cur, msg); seen++; cur = "" }
      else {
        if (line ~ /(AddressSanitizer|LeakSanitizer|runtime error:)/ && san == "") san = line
        gsub(/\[ +(ERROR|LINE) +\] (--- )?/, "", line)
        if (length(msg) < 500) msg = msg " " line
      }
    }
    close(file)
    if (planned == 0) { # not a cmocka program: one test by its exit status, 77 = skipped
      if (rc == 0) passed++
      else if (rc == 77) { skipped++; print "SKIP " name ":" msg }
      else report("", died(rc) ":" (san != "" ? " " san : msg))
    } else {
      if (cur != "") { report(cur, died(rc) ":" (san != "" ? " " san : msg)); seen++ }
      if (planned > seen) { failed += planned - seen; print "FAIL " name ": " planned - seen " tests did not run" }
      if (rc != 0 && failed == here) report("", died(rc) " after its tests:" (san != "" ? " " san : msg))
    }
    if (secs >= 10) print "SLOW " name ": " secs " s"
  }
  END {
    printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
    exit failed > 0 ? 1 : 0
  }'
