#!/bin/sh
# A result file's command once more: the same numbers, and what is said where they are not.
. tests/cli/lib.sh

works 'a result' knockout "$tiny" "$picture" "What is [this] one's name?" --window 2 -o "$T/k"
works 'again' rerun "$T/k/knockout.json"
check 'the same' grep -q '^the same result, digest [0-9a-f]\{64\}$' "$T/out"
check 'nothing was written' [ "$(find "$T/k" -newer "$T/out" -type f | wc -l)" = 0 ]
works 'on other instructions' lens "$tiny" "$picture" 'What is [this]?' --json --isa portable
cp "$T/out" "$T/lens.json"
works 'of a result on standard output' rerun "$T/lens.json"
sed 's/"p": 0\./"p": 0.1/' "$T/k/knockout.json" >"$T/changed.json"
fails 1 'not the same result' 'a changed number' rerun "$T/changed.json"
sed 's/--window 2/--window 1/' "$T/k/knockout.json" >"$T/other.json"
fails 1 'not the same result' 'another command' rerun "$T/other.json"
sed "s/chiasm knockout/chiasm export/" "$T/k/knockout.json" >"$T/export.json"
fails 1 "'chiasm export' is not repeated" 'what does more than compute' rerun "$T/export.json"
sed "s/chiasm knockout/rm/" "$T/k/knockout.json" >"$T/rm.json"
fails 1 'holds no command of chiasm' 'another program' rerun "$T/rm.json"
echo '{"kind": "trace"}' >"$T/none.json"
fails 1 'no result with its command in it' 'no command' rerun "$T/none.json"
fails 1 'none-such.json' 'no file' rerun "$T/none-such.json"
