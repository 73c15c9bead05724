#!/bin/sh
# The whole study of docs/studies/smollm2-editing.md, from the repository root. What is finished is not done again.
#   usage: sh docs/studies/smollm2-editing/run.sh nq_validation.json [OUT]
# CHIASM: the program (build/chiasm). PYTHON: a Python with tools/ref/requirements.txt, for the same edits by PyTorch; "" leaves
# them out. PEER: how many edits PyTorch makes of each method (100). FACTS=no: the edit set is not made again, only used.
# MODEL, LAYERS (4-6), LIMIT (edits; 0 is all) and DRAWS: for a small run.
set -eu
nq=${1:?usage: run.sh nq_validation.json [OUT]}
out=${2:-out/smollm2-editing}
chiasm=${CHIASM:-build/chiasm}
python=${PYTHON-python3}
model=${MODEL:-models/cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}
layers=${LAYERS:-4-6}
mid=$(((${layers%-*} + ${layers#*-}) / 2))
here=docs/studies/smollm2-editing
mkdir -p "$out"

# What the model knows, and the edit set of it.
if [ "${FACTS:-yes}" = yes ]; then
  python3 tools/studies/smollm2_facts.py candidates -o "$out/candidates.jsonl"
  "$chiasm" study predict "$out/candidates.jsonl" --model "$model" --max-new 5 -o "$out/known" -q
  "$chiasm" data convert "$out/candidates.jsonl" --right "$out/known" -o "$out/right.jsonl"
  python3 tools/studies/smollm2_facts.py edits "$out/right.jsonl" -o "$out/facts.jsonl"
  cmp "$out/facts.jsonl" $here/facts.jsonl
fi

# Edits, with the same settings on both sides.
"$chiasm" moments "$model" --data "$nq" --layers "$layers" --keys 10000 -o "$out/moments.safetensors" -q
settings() {
  value="--steps 20 --stop 0.05 --decay 1e-3 --clamp 10 --shrink 0.1 --moments $out/moments.safetensors"
  case $1 in
    rome) echo "--method rome --layer $mid --lr 2z $value" ;;
    memit) echo "--method memit --layer $layers --lr 0.2z --lambda 0.01kk $value" ;;
    ft) echo "--method ft --layer $mid --steps 20 --stop 0.05 --lr 2e-3" ;;
  esac
}
edit() { # LOG OPTIONS...
  log=$1
  shift
  "$chiasm" eval edits $here/facts.jsonl --model "$model" --raw --split test --limit "${LIMIT:-0}" -q "$@" -o "$log" >/dev/null
}
edit "$out/none.jsonl" --method none
for m in rome ft memit; do
  preset=
  [ $m != ft ] || preset='--preset unconstrained'
  edit "$out/$m.jsonl" $(settings $m) $preset --before "$out/none.jsonl"
  [ -n "$python" ] || continue
  "$python" tools/ref/edit_text_ref.py $here/facts.jsonl --model "$model" --split test --limit "${PEER:-100}" $(settings $m) \
    -o "$out/$m-torch.jsonl"
done

# Tables.
"$chiasm" eval compare $here/facts.jsonl --split test ROME="$out/rome.jsonl" MEMIT="$out/memit.jsonl" FT="$out/ft.jsonl" \
  none="$out/none.jsonl" --against none --draws "${DRAWS:-10000}" --csv "$out/table.csv"
[ -n "$python" ] || exit 0
rm -f "$out/edits.csv"
for m in rome memit ft; do
  "$python" tools/ref/edit_text_ref.py --compare "$out/$m.jsonl" "$out/$m-torch.jsonl" --csv "$out/edits.csv"
done
