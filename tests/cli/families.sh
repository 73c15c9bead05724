#!/bin/sh
# Every command on every family: info, ask, capture, trace, run and doctor on each tiny checkpoint, on GGUF files and on
# LLaVA as two GGUF files; language models without a picture.
. tests/cli/lib.sh

cat >"$T/plan.json" <<END
{"format": "chiasm-plan-1", "branches": [
  {"name": "clean"},
  {"name": "noisy", "parent": "clean", "interventions": [{"op": "noise", "site": "embed", "rows": "constraint", "scale": 2, "seed": 5}]},
  {"name": "restored", "parent": "noisy", "interventions": [{"op": "copy", "site": "embed", "rows": "constraint", "source": "clean"}]}]}
END
mmproj=
# As works; but a picture size may be remarked on, and a random model does not have to know what the corruption hides.
runs() {
  name=$1
  shift
  begin "$name"
  if ! "$chiasm" "$@" >"$T/out" 2>"$T/err"; then bad "$name" "failed: $(head -c 400 "$T/err")"
  elif grep -qv 'position embeddings are interpolated\|warning: the corruption did not lower' "$T/err"; then bad "$name" "is not silent: $(head -c 400 "$T/err")"
  else ok "$name"; fi
}
p_of() { awk -v b="\"$2\"" '/"name":/ { on = ($2 == b ",") } on && /"p":/ { print $2; exit }' "$1" 2>/dev/null; }

# all NAME MODEL PICTURE [OPTIONS...]: the six commands; the options are those of prompts. An empty PICTURE: none.
all() {
  who=$1
  m=$2
  shown=$3
  shift 3
  words='What is the capital of [the flag]?'
  runs "info $who" info "$m" ${mmproj:+--mmproj "$mmproj"} --json
  check "info $who: sites of the decoder" sh -c "[ \$(grep -c '\"site\":' '$T/out') -ge 10 ]"
  runs "ask $who" ask "$m" ${shown:+"$shown"} "$words" ${mmproj:+--mmproj "$mmproj"} "$@" --max-new 3 --json
  check "ask $who: an answer" grep -q '"p":' "$T/out"
  runs "capture $who" capture "$m" ${shown:+"$shown"} "$words" ${mmproj:+--mmproj "$mmproj"} "$@" --site resid_post --tokens last -o "$T/acts.safetensors"
  check "capture $who: the decoder's rows" sh -c "head -c 4000 '$T/acts.safetensors' | grep -q '\"decoder.1.resid_post\"'"
  runs "trace $who" trace "$m" ${shown:+"$shown"} "$words" ${mmproj:+--mmproj "$mmproj"} "$@" --corrupt noise:3s,samples=1 --check 4 --json
  check "trace $who: two runs" sh -c "grep -q '\"clean\":' '$T/out' && grep -q '\"corrupt' '$T/out'"
  rm -rf "$T/run"
  runs "run $who" run "$m" ${shown:+"$shown"} "$words" ${mmproj:+--mmproj "$mmproj"} "$@" --plan "$T/plan.json" -o "$T/run"
  check "run $who: clean values put back give the clean bits" sh -c "
    [ -n '$(p_of "$T/run/run.json" clean)' ] && [ '$(p_of "$T/run/run.json" clean)' = '$(p_of "$T/run/run.json" restored)' ] &&
    [ '$(p_of "$T/run/run.json" clean)' != '$(p_of "$T/run/run.json" noisy)' ]"
  runs "doctor $who" doctor "$m" ${mmproj:+--mmproj "$mmproj"}
  check "doctor $who finds nothing" sh -c "grep -q '^ok ' '$T/out' && ! grep -q FAILED '$T/out'"
}

for m in tests/fixtures/tiny-*; do
  shown=
  for f in "$m"/picture.*; do if [ -f "$f" ]; then shown=$f; fi; done
  case $m in
    *bunny | *liuhaotian) all "${m##*/}" "$m" "$shown" --template plain ;; # their own is longer than the tiny context
    *) all "${m##*/}" "$m" "$shown" ;;
  esac
done
for g in llama-f16 llama-q8_0 gpt2 phi2 qwen2; do all "$g.gguf" "tests/fixtures/gguf/$g.gguf" ''; done
mmproj=tests/fixtures/gguf/llava-mmproj.gguf
all 'llava.gguf with its mmproj' tests/fixtures/gguf/llava.gguf "$picture"
mmproj=
all 'llava.gguf alone' tests/fixtures/gguf/llava.gguf ''
