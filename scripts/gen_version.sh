#!/bin/sh
# gen_version.sh OUT VERSION: write the header with version and git id, only when its content changes.
set -eu
out=$1
version=$2
id=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
if [ "$id" != unknown ] && ! git diff --quiet HEAD -- 2>/dev/null; then id="$id+changes"; fi
mkdir -p "$(dirname "$out")"
tmp="$out.$$"
cat >"$tmp" <<END
/* Made by scripts/gen_version.sh; do not edit. */
#ifndef CHI_VERSION_H
#define CHI_VERSION_H
#define CHI_VERSION "$version"
#define CHI_GIT_ID "$id"
#endif
END
if cmp -s "$tmp" "$out"; then rm -f "$tmp"; else mv -f "$tmp" "$out"; fi
