#!/bin/sh
# Rebuilds every file of the demo world: table, flags, tokenizer, evaluation items,
# edit sets, samples and contact sheets; then checks them. Prints the time of each.
#
#   tools/world/make_world.sh [--packages DIR] [--model DIR] [--sheets DIR] [--python PROGRAM]
#
# Without --packages the two npm packages are fetched to out/packages. Needs
# npm, rsvg-convert (Debian: librsvg2-bin) and tools/demo_model/requirements.txt.
set -eu
packages= model=models/demo sheets=docs/img python=${PYTHON:-python3}
while [ $# -gt 0 ]; do
  case $1 in
    --packages) packages=$2 ;;
    --model) model=$2 ;;
    --sheets) sheets=$2 ;;
    --python) python=$2 ;;
    *) echo "make_world.sh: unknown option $1" >&2; exit 2 ;;
  esac
  [ $# -gt 1 ] || { echo "make_world.sh: $1 needs a value" >&2; exit 2; }
  shift 2
done
here=$(dirname "$0")
for program in "$python" rsvg-convert; do
  command -v "$program" >/dev/null || { echo "make_world.sh: $program not found" >&2; exit 1; }
done
"$python" -c 'import numpy, PIL, tokenizers' 2>/dev/null || {
  echo "make_world.sh: $python lacks the packages of tools/demo_model/requirements.txt: pip install -r it, or name" \
    "another interpreter with PYTHON=" >&2
  exit 1
}

if [ -z "$packages" ]; then
  packages=out/packages
  mkdir -p $packages
  for p in flag-icons@7.5.0 world-countries@5.1.0; do
    name=${p%@*} file=${p%@*}-${p#*@}.tgz
    [ -f "$packages/$file" ] || (cd $packages && npm pack --silent "$p" >/dev/null)
    mkdir -p "$packages/$name"
    tar xzf "$packages/$file" -C "$packages/$name" --strip-components 1
  done
fi

step() {
  name=$1
  shift
  start=$(date +%s)
  echo "== $name"
  "$python" "$@"
  echo "== $name: $(($(date +%s) - start)) s"
}
mkdir -p "$model/world" "$sheets"
step "table and flags" $here/build.py --packages "$packages" --out "$model/world" --seed 1
step "tokenizer" $here/../demo_model/tokenizer.py --world "$model/world" --out "$model"
step "evaluation items" $here/items.py --model "$model" --seed 20 --out "$model/eval"
step "edit sets" $here/edits.py --model "$model" --seed 21 --out "$model/edits"
step "entities and samples" $here/extras.py --model "$model" --seed 7
step "contact sheets" $here/sheets.py --world "$model/world" --out "$sheets" --seed 5
step "check of the world" $here/check_world.py --model "$model" --packages "$packages"
step "check of the items" $here/check.py "$model"
