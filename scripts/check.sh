#!/bin/sh
# check.sh [--fast]: what the compiler's default run does not see. Every check runs; the exit status is 1 if any failed.
# --fast leaves out the clang build and cppcheck.
set -u
cd "$(dirname "$0")/.." || exit 1
fast=0
case "${1:-}" in
  --fast) fast=1 ;;
  '') ;;
  *) echo "usage: scripts/check.sh [--fast]" >&2; exit 2 ;;
esac
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}
failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

check() { # NAME COMMAND...: its output is shown only if it fails
  name=$1
  shift
  if "$@" >"$log" 2>&1; then
    echo "ok    $name"
  else
    echo "FAIL  $name"
    sed 's/^/      /' "$log" | tail -n 60
    failed=1
  fi
}

c_files() { find src cli tests fuzz examples bench -name '*.c' -not -path '*/fixtures/*' 2>/dev/null | sort; }
c_and_headers() { find src cli include tests fuzz examples bench \( -name '*.c' -o -name '*.h' \) -not -path '*/fixtures/*' 2>/dev/null | sort; }

# Headers keep their hand-aligned tables; sources are exactly what clang-format 14 makes of them.
format() {
  bad=0
  for f in $(c_files); do
    clang-format --dry-run -Werror "$f" >/dev/null 2>&1 || { echo "$f: run clang-format -i $f"; bad=1; }
  done
  return $bad
}
lengths() { c_and_headers | xargs awk -f scripts/check_lengths.awk; }
words() { find src cli -name '*.[ch]' | sort | xargs awk -f scripts/check_words.awk; }
shell_syntax() { for f in scripts/*.sh; do sh -n "$f" || return 1; done && bash -n .ci/run; }

# A figure carries its command: run where the paths in it are relative.
figures() { ! git ls-files docs models | grep -E '\.(png|svg|csv|json|html)$' | xargs grep -al ' /tmp/\|=/tmp/\|/home/'; }

build_with() { # COMPILER FOLDER
  cmake -S . -B "$2" -G Ninja --log-level=WARNING -DCMAKE_C_COMPILER="$1" -DCHI_WERROR=ON && cmake --build "$2" -j "$jobs" -- -k 0
}

static_analysis() {
  mkdir -p build-check/cppcheck
  find src cli -name '*.c' -not -path 'src/kernel/x86/*' | sort >build-check/cppcheck.list
  cppcheck --quiet -j "$jobs" --std=c11 --platform=unix64 --enable=warning,portability --inline-suppr --error-exitcode=1 \
    --cppcheck-build-dir=build-check/cppcheck --library=posix -D_GNU_SOURCE -D__x86_64__ -U__aarch64__ \
    --suppress=missingIncludeSystem --suppress=unmatchedSuppression --suppress=nullPointerOutOfMemory \
    -Isrc -Iinclude -Icli -Ibuild/gen --file-list=build-check/cppcheck.list
}

check "folder ranks" scripts/check_layers.sh
check "file, function and line lengths" lengths
check "banned functions" words
check "shell syntax" shell_syntax
check "figures name no machine's paths" figures
if clang-format --version 2>/dev/null | grep -q 'version 14\.'; then
  check "formatting (clang-format 14)" format
else
  echo "skip  formatting: needs clang-format 14"
fi
if [ "$fast" = 0 ]; then
  check "gcc, warnings are errors" build_with gcc build-gcc
  check "clang, warnings are errors" build_with clang build-clang
  check "cppcheck" static_analysis
fi
exit $failed
