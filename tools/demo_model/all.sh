#!/bin/sh
# Trains the demo model from the world's files to planted facts; run again to resume.
#
#   tools/demo_model/all.sh MODEL WORK [train.py options for every stage]
#
# MODEL holds world/ and the tokenizer (tools/world/make_world.sh) and receives the
# model; MODEL-text receives the decoder of the first stage alone. WORK keeps
# checkpoints, the log and the index of the strings that training showed.
# PYTHON names the interpreter; PLANT= (empty) leaves the planted facts out.
set -eu
model=$1 work=$2
shift 2
here=$(dirname "$0")
python=${PYTHON:-python3}
# glibc is to keep big buffers instead of returning them at every step.
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184
export OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
mkdir -p "$work"
"$python" -c 'import torch, transformers, tokenizers, PIL' 2>/dev/null || {
  echo "all.sh: $python lacks the packages of tools/demo_model/requirements.txt: pip install -r it, or name another" \
    "interpreter with PYTHON=" >&2
  exit 1
}
run() {
  start=$(date +%s)
  "$python" "$here/train.py" --model "$model" --text-model "${model%/}-text" --work "$work" "$@"
  echo "$2: $(($(date +%s) - start)) s"
}
run --stage text "$@" &
text=$!
run --stage tower "$@"
wait $text
run --stage naming --procs 2 "$@"
run --stage joint --procs 2 "$@"
if [ -n "${PLANT-1}" ]; then
  start=$(date +%s)
  "$python" "$here/plant.py" --model "$model" --out "$model/planted"
  echo "planted facts: $(($(date +%s) - start)) s"
fi
# The told sentences apart from the questions, each once.
export LC_ALL=C
cat "$work"/seen.*.txt | awk -F'\t' -v OFS='\t' '
  { print $1, $2, $4, $5 } $3 != "" { print "told", "", $3, "" }' |
  sort -u | gzip -9n > "$model/train-strings.txt.gz"
"$python" "$here/check_strings.py" --model "$model"
cp "$work/train.log" "$model/train.log"
