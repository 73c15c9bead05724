# One CSV of `chiasm eval compare` as a table in Markdown: a line a row, the columns named in cols, percent but for those in plain.
#   awk -F, -v cols="headline reliability" -v heads="headline|said" -v plain=p_target -f table.awk FILE.csv
BEGIN {
  n = split(cols, col, " ")
  split(heads, head, "|")
  line = "| edited by | edits |"
  rule = "|---|---|"
  for (k = 1; k <= n; k++) {
    line = line " " head[k] " |"
    rule = rule "---|"
  }
  print line "\n" rule
}
NR > 1 {
  if (!($1 in seen)) {
    seen[$1] = 1
    row[++rows] = $1
  }
  f = index(" " plain " ", " " $2 " ") ? 1 : 100
  d = f == 1 ? 2 : 1
  text[$1, $2] = $4 == "" ? sprintf("%.*f", d, f * $3) : sprintf("%.*f (%.*f to %.*f)", d, f * $3, d == 2 ? 2 : 0, f * $4, d == 2 ? 2 : 0, f * $5)
  if ($2 == "reliability") edits[$1] = $6
  if ($8 != "" && $2 == "headline") less[$1] = sprintf("%.1f (%.1f to %.1f)", 100 * $8, 100 * $9, 100 * $10) \
    ($11 == "" ? "" : sprintf("; p %.4f, Holm %.4f", $11, $12))
}
END {
  for (i = 1; i <= rows; i++) {
    line = "| " row[i] " | " edits[row[i]] " |"
    for (k = 1; k <= n; k++) line = line " " ((row[i], col[k]) in text ? text[row[i], col[k]] : "-") " |"
    print line
  }
  if (differences) {
    print "\nHeadline less that of " differences ", in points, paired by edit:\n\n| edited by | difference (interval), p, Holm |\n|---|---|"
    for (i = 1; i <= rows; i++) if (row[i] in less) print "| " row[i] " | " less[row[i]] " |"
  }
}
