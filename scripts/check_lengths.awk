# Files <= 800 lines, functions <= 100, lines of sources <= 120 characters (headers hold wide tables).
# Relies on clang-format's layout: a function begins with a line in column 0 and ends with "}" in column 0.
function complain(line, what) { print FILENAME ":" line ": " what; bad = 1 }
function finish() { if (lines > 800) { print file ": " lines " lines; the limit is 800" ; bad = 1 } }
FNR == 1 { if (file != "") finish(); file = FILENAME; inside = 0; head = 0 }
{
  lines = FNR
  width = length($0)
  if (width > 120 && $0 ~ /[\200-\377]/) { t = $0; gsub(/[\200-\277]/, "", t); width = length(t) }
  if (width > 120 && FILENAME ~ /\.c$/) complain(FNR, width " characters; the limit is 120")
}
/\t/ { complain(FNR, "a tab") }
/[ \t]+$/ { complain(FNR, "white space at the end of the line") }
!inside && /^[A-Za-z_]/ { head = FNR }
!inside && head && /\) \{$/ { inside = 1; start = head }
inside && /^\}/ {
  if (FNR - start + 1 > 100) complain(start, "function of " (FNR - start + 1) " lines; the limit is 100")
  inside = 0; head = 0
}
END { finish(); exit bad }
