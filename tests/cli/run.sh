#!/bin/sh
# ask, capture, run and dumped plans on the tiny checkpoint: the same numbers by every road.
. tests/cli/lib.sh

works 'ask' ask "$tiny" "$picture" "$question" --json --max-new 4
cp "$T/out" "$T/ask.json"
for isa in portable avx2 avx512; do
  if ! "$chiasm" ask "$tiny" Why --isa $isa --max-new 1 >/dev/null 2>&1; then continue; fi
  works "ask on $isa" ask "$tiny" "$picture" "$question" --json --max-new 4 --isa $isa --threads 3
  check "the same answer on $isa" sh -c "grep -v '\"command\"\|\"isa\"' '$T/out' >'$T/a'; grep -v '\"command\"\|\"isa\"' '$T/ask.json' | cmp '$T/a' -"
done
works 'a text model, two words' ask tests/fixtures/tiny-llama 'Why?' --max-new 3
works 'raw prompt' ask "$tiny" "$picture" 'USER: <image> Why? ASSISTANT:' --raw --max-new 2
works 'another template' ask "$tiny" "$picture" Why --template vicuna --max-new 2
works 'info as JSON' info "$tiny" --json
check 'info names the family and every site' sh -c "grep -q '\"family\": \"llava\"' '$T/out' && [ \$(grep -c '\"site\":' '$T/out') -ge 15 ]"

works 'capture' capture "$tiny" "$picture" "$question" --site resid_post,pattern,vision.resid_post,image_embed --layers 0-1 --tokens constraint -o "$T/acts.safetensors"
check 'capture names its tensors' sh -c "head -c 20000 '$T/acts.safetensors' | grep -q '\"decoder.1.pattern\".*\"decoder.image_embed\".*\"rows.decoder\".*\"vision.0.resid_post\"'"
check 'capture has the maps' sh -c "head -c 40000 '$T/acts.safetensors' | grep -q 'provenance' && head -c 40000 '$T/acts.safetensors' | grep -q 'constraint' && head -c 40000 '$T/acts.safetensors' | grep -q 'crop_left'"
works 'all rows of all layers' capture "$tiny" "$picture" "$question" --site q,k,v,mlp_act --tokens all -o "$T/all.safetensors" --json

cat >"$T/plan.json" <<END
{"format": "chiasm-plan-1", "branches": [
  {"name": "clean"},
  {"name": "noisy", "parent": "clean", "interventions": [{"op": "noise", "site": "embed", "rows": "constraint", "scale": 2, "seed": 5}]},
  {"name": "restored", "parent": "noisy", "interventions": [{"op": "copy", "site": "embed", "rows": "constraint", "source": "clean"}]},
  {"name": "captured", "parent": "noisy", "interventions": [{"op": "set", "site": "resid_post", "layers": 1, "rows": "constraint",
    "value": {"file": "acts.safetensors", "tensor": "decoder.1.resid_post"}}]},
  {"name": "donor", "image": "$(pwd)/$tiny/donor.png"},
  {"name": "talks", "parent": "noisy", "generate": 3, "interventions": [{"op": "zero", "site": "attn_out", "layers": 0, "rows": "generated"}]}],
 "captures": [{"branch": "noisy", "site": "mlp_out", "layers": "all", "rows": "last"}]}
END
works 'run' run "$tiny" "$picture" "$question" --plan "$T/plan.json" -o "$T/out1" --dump-plan "$T/dump.json"
p_of() { awk -v b="\"$2\"" '/"name":/ { on = ($2 == b ",") } on && /"p":/ { print $2; exit }' "$1"; }
check 'clean values put back give the clean bits' sh -c "[ '$(p_of "$T/out1/run.json" clean)' = '$(p_of "$T/out1/run.json" restored)' ]"
check 'noise does something' sh -c "[ '$(p_of "$T/out1/run.json" clean)' != '$(p_of "$T/out1/run.json" noisy)' ]"
check 'captured values do something' sh -c "[ '$(p_of "$T/out1/run.json" captured)' != '$(p_of "$T/out1/run.json" noisy)' ]"
check 'another picture does something' sh -c "[ '$(p_of "$T/out1/run.json" clean)' != '$(p_of "$T/out1/run.json" donor)' ]"
check 'a branch that generates has a text' grep -q '"generated":' "$T/out1/run.json"
check 'captures were written' test -s "$T/out1/states.safetensors"
works 'run the dumped plan' run "$tiny" --plan "$T/dump.json" -o "$T/out2"
strip() { sed '/"provenance"/,/}/d; /"plan"/d; /"generated"/d; s/,$//' "$1"; }
strip "$T/out1/run.json" >"$T/a"
strip "$T/out2/run.json" >"$T/b"
check 'the dumped plan gives the same numbers' cmp "$T/a" "$T/b"
works 'run by full forwards' run "$tiny" "$picture" "$question" --plan "$T/plan.json" -o "$T/out3" --executor dense
strip "$T/out3/run.json" >"$T/b"
check 'full forwards give the same numbers' cmp "$T/a" "$T/b"
works 'run in pieces' run "$tiny" "$picture" "$question" --plan "$T/plan.json" -o "$T/out4" --mem 400K
strip "$T/out4/run.json" | sed '/"generated"/d' >"$T/b"
check 'pieces give the same numbers' cmp "$T/a" "$T/b"
works 'target and top' run "$tiny" "$picture" "$question" --plan "$T/plan.json" --target '#17' --top 2
if [ -f models/demo/model.safetensors ]; then
  works 'the example plan' run demo models/demo/samples/japan.png 'What is the capital of [Peru]?' --plan examples/plan.json
fi

# ---- doctor
for m in tiny-gqa tiny-llama tiny-opt tiny-phi tiny-blip2; do
  if [ ! -f "tests/fixtures/$m/model.safetensors" ]; then continue; fi
  for d in f32 bf16; do
    works "doctor $m $d" doctor "tests/fixtures/$m" --dtype $d
    check "doctor $m $d finds nothing" sh -c "[ \$(grep -c '^ok ' '$T/out') = 6 ] && ! grep -q FAILED '$T/out'"
  done
done

# ---- traces as plans
works 'trace' trace "$tiny" "$picture" "$question" --corrupt noise:3s,samples=2 --dump-plan "$T/trace-plan.json" --json
cp "$T/out" "$T/trace.json"
works 'run the plan of a trace' run "$tiny" --plan "$T/trace-plan.json" --json
check 'the clean run has the same p' sh -c "
  p=\$(awk '/\"clean\":/ { on = 1 } on && /\"p\":/ { print \$2; exit }' '$T/trace.json')
  q=\$(awk '/\"branches\":/ { on = 1 } on && /\"p\":/ { print \$2; exit }' '$T/out')
  [ -n \"\$p\" ] && [ \"\$p\" = \"\$q\" ]"

# ---- where demo is
mkdir "$T/data" && ln -s "$(pwd)/$tiny" "$T/data/demo"
begin 'demo in CHIASM_DATA'
if CHIASM_DATA=$T/data "$chiasm" info demo >"$T/out" 2>&1 && grep -qF "$T/data/demo" "$T/out"; then ok 'demo in CHIASM_DATA'; else bad 'demo in CHIASM_DATA' "$(head -c 300 "$T/out")"; fi
