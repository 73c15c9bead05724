#!/bin/sh
# A folder of src/ includes only itself and folders before it in this list; cli/ may include everything.
set -eu
cd "$(dirname "$0")/.."
find src cli -name '*.[ch]' -o -name '*.def' | sort | xargs awk '
  BEGIN {
    n = split("base tensor file kernel text image site nn model sweep data analyze edit eval study report cli", name, " ")
    for (i = 1; i <= n; i++) rank[name[i]] = i
  }
  FNR == 1 {
    parts = split(FILENAME, p, "/")
    own = p[1] == "src" ? p[2] : p[1]
    if (!(own in rank)) { print FILENAME ": folder \"" own "\" has no rank in scripts/check_layers.sh"; bad = 1; rank[own] = n }
  }
  /^[ \t]*#[ \t]*include[ \t]*"/ {
    split($0, q, "\"")
    if (index(q[2], "..") > 0) { print FILENAME ":" FNR ": include paths start at src/: " q[2]; bad = 1 }
    if (split(q[2], d, "/") < 2) next # a header of its own folder, chiasm.h or the generated chi_version.h
    if (!(d[1] in rank)) { print FILENAME ":" FNR ": unknown folder in \"" q[2] "\""; bad = 1 }
    else if (rank[d[1]] > rank[own]) { print FILENAME ":" FNR ": " own " must not include " q[2] " (" d[1] " is below it)"; bad = 1 }
  }
  END { exit bad }'
