#!/bin/sh
# What is wrong with a file or a request ends in one line that names the place, the reason and what to do: status 1, nothing
# on stdout, no partial output.
. tests/cli/lib.sh

# ---- checkpoints
fails 1 'no-such/config.json: no such file' 'no folder' ask "$T/no-such" "$picture" Why
model config
echo '{"model_type": "llava", ' >"$M/config.json"
fails 1 'config.json: line' 'broken JSON' info "$M"
echo '{"model_type": "mamba"}' >"$M/config.json"
fails 1 "model_type is 'mamba'; known are" 'unknown architecture' info "$M"
model missing
rm "$M/model.safetensors"
fails 1 'model.safetensors' 'missing weights' info "$M"
model truncated
head -c 60000 "$tiny/model.safetensors" >"$M/model.safetensors"
fails 1 'model.safetensors' 'truncated weights' info "$M"
printf '\377\377\377\377\377\377\377\177{}' >"$M/model.safetensors"
fails 1 'model.safetensors' 'oversized header' info "$M"
h='{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
{ printf "\\$(printf %o ${#h})\\0\\0\\0\\0\\0\\0\\0"; printf '%s' "$h"; printf '123456789012'; } >"$M/model.safetensors"
fails 1 'overlap' 'overlapping offsets' info "$M"
: >"$M/model.safetensors"
fails 1 'model.safetensors' 'empty weights' info "$M"
model dtype
LC_ALL=C sed 's/"F16"/"I16"/g' "$tiny/model.safetensors" >"$M/model.safetensors"
fails 1 'I16' 'wrong dtype' info "$M"
model shape
LC_ALL=C sed 's/"shape":\[400,32\]/"shape":[32,400]/' "$tiny/model.safetensors" >"$M/model.safetensors"
fails 1 '32x400' 'wrong shape' info "$M"
model tokenizer
head -c 500 "$tiny/tokenizer.json" >"$M/tokenizer.json"
fails 1 'tokenizer.json' 'broken tokenizer' info "$M"
rm "$M/tokenizer.json"
fails 1 'tokenizer' 'missing tokenizer' info "$M"

# ---- pictures
fails 1 'nowhere.png' 'no picture' ask "$tiny" "$T/nowhere.png" Why
fails 1 'tokenizer.json' 'a picture that is none' ask "$tiny" "$tiny/tokenizer.json" Why
head -c 300 "$picture" >"$T/cut.png"
fails 1 'cut.png' 'truncated picture' ask "$tiny" "$T/cut.png" Why
# signature, IHDR of 60,000 x 60,000 RGB with its CRC
printf '\211PNG\r\n\032\n\0\0\0\015IHDR\0\0\352\140\0\0\352\140\010\002\0\0\0\017\260\342\025' >"$T/huge.png"
fails 1 '60000' 'a picture of 60,000 x 60,000' ask "$tiny" "$T/huge.png" Why

# ---- prompts
fails 1 'the question is empty' 'empty question' ask "$tiny" "$picture" ''
fails 1 'the question is empty' 'blank question' ask "$tiny" "$picture" '  '
long=$(awk 'BEGIN { for (i = 0; i < 600; i++) printf "word %d ", i }')
fails 1 'context holds' 'prompt longer than the context' ask "$tiny" "$picture" "$long"
fails 1 'brackets' 'no constraint' trace "$tiny" "$picture" 'What is the capital of this country?'
fails 1 'put [ ] around its words' 'constraint that is not there' capture "$tiny" "$picture" 'Why?' --site q --tokens constraint -o "$T/x.safetensors"
fails 1 'template' 'unknown template' ask "$tiny" "$picture" Why --template nope
fails 1 'text-only' 'picture for a text model' ask tests/fixtures/tiny-llama "$picture" Why
fails 1 'pdp11' 'unknown instruction set' ask "$tiny" Why --isa pdp11
fails 1 'raise --mem' 'no memory allowed' ask "$tiny" "$picture" Why --mem 1K
fails 1 'row' 'row outside the prompt' capture "$tiny" "$picture" Why --site q --tokens 0-9999 -o "$T/x.safetensors"
fails 1 'layer' 'layer outside the model' capture "$tiny" "$picture" Why --site q --layers 0-99 -o "$T/x.safetensors"
fails 1 'has no site' 'site that the model lacks' capture tests/fixtures/tiny-llama Why --site vision.q -o "$T/x.safetensors"
check 'none of them left a file' sh -c "[ ! -e '$T/x.safetensors' ]"

# ---- plans
plan() { printf '%s' "$1" >"$T/plan.json"; }
head='{"format": "chiasm-plan-1", "branches": [{"name": "a"}'
fails 1 'none.json' 'no plan' run "$tiny" "$picture" Why --plan "$T/none.json"
plan '{"format": '
fails 1 'plan.json: line 1' 'a plan that is not JSON' run "$tiny" "$picture" Why --plan "$T/plan.json"
plan "$head, {\"name\": \"b\", \"parent\": \"a\", \"interventions\": [{\"op\": \"copy\", \"site\": \"q\", \"layers\": 0, \"rows\": 0, \"source\": \"c\"}]},
  {\"name\": \"c\", \"parent\": \"a\", \"interventions\": [{\"op\": \"copy\", \"site\": \"q\", \"layers\": 0, \"rows\": 0, \"source\": \"b\"}]}]}"
fails 1 'a cycle' 'a plan with a cycle' run "$tiny" "$picture" Why --plan "$T/plan.json"
plan "$head, {\"name\": \"b\", \"parent\": \"a\", \"interventions\": [{\"op\": \"copy\", \"site\": \"q\", \"layers\": 0, \"rows\": 0, \"source\": \"a\", \"source_layer\": 1}]}]}"
fails 1 'same site and layer' 'a source in another layer' run "$tiny" "$picture" Why --plan "$T/plan.json"
plan "$head, {\"name\": \"b\", \"parent\": \"a\", \"interventions\": [{\"op\": \"set\", \"site\": \"mlp_out\", \"layers\": 0, \"rows\": 0, \"value\": [1, 2]}]}]}"
fails 1 'branches[1].interventions[0]' 'a value of wrong width' run "$tiny" "$picture" Why --plan "$T/plan.json" -o "$T/gone"
plan "$head, {\"name\": \"b\", \"parent\": \"a\", \"interventions\": [{\"op\": \"set\", \"site\": \"mlp_out\", \"layers\": 0, \"rows\": 0, \"value\": {\"file\": \"no.safetensors\", \"tensor\": \"x\"}}]}]}"
fails 1 'no.safetensors' 'a value file that is missing' run "$tiny" "$picture" Why --plan "$T/plan.json" -o "$T/gone"
plan '{"format": "chiasm-plan-1", "branches": [{"name": "a", "tokens": [1, 2, 3], "image": "no.png", "image_row": 1}]}'
fails 1 'no.png' 'a picture that is missing' run "$tiny" --plan "$T/plan.json"
plan "$head]}"
fails 1 'has no input' 'a root without input' run "$tiny" --plan "$T/plan.json"
check 'no output folder was made' sh -c "[ ! -e '$T/gone' ]"

# ---- output
small="--site q --layers 0 --tokens last"
fails 1 'no/such/folder' 'output in no folder' capture "$tiny" "$picture" Why $small -o "$T/no/such/folder/x.safetensors"
if [ -c /dev/full ]; then
  fails 1 '/dev/full' 'a full disk' capture "$tiny" "$picture" Why $small -o /dev/full
  begin 'stdout on a full disk'
  "$chiasm" ask "$tiny" "$picture" Why >/dev/full 2>"$T/err"
  if [ $? = 1 ] && [ "$(wc -l <"$T/err")" = 1 ] && grep -q 'standard output' "$T/err"; then ok 'stdout on a full disk'; else bad 'stdout on a full disk' "$(cat "$T/err")"; fi
fi
mkdir "$T/limit"
begin 'a file-size limit'
(ulimit -f 8; exec "$chiasm" capture "$tiny" "$picture" Why --site resid_post,q,k,v,mlp_act --tokens all -o "$T/limit/x.safetensors") >"$T/out" 2>"$T/err"
if [ $? = 1 ] && [ "$(wc -l <"$T/err")" = 1 ] && [ -z "$(ls -A "$T/limit")" ]; then ok 'a file-size limit'; else bad 'a file-size limit' "$(cat "$T/err"; ls -A "$T/limit")"; fi
echo keep >"$T/limit/old.safetensors"
(ulimit -f 8; exec "$chiasm" capture "$tiny" "$picture" Why --site resid_post,q,k,v,mlp_act --tokens all -o "$T/limit/old.safetensors") >"$T/out" 2>"$T/err"
check 'a failed write leaves the old file' grep -q keep "$T/limit/old.safetensors"
