# Functions that must not be called. Comments and string literals are taken out first.
function strip(s,   out, i, c, two) {
  out = ""
  for (i = 1; i <= length(s); i++) {
    c = substr(s, i, 1); two = substr(s, i, 2)
    if (in_comment) { if (two == "*/") { in_comment = 0; i++ } continue }
    if (quote != "") { if (c == "\\") i++; else if (c == quote) { quote = ""; out = out c } continue }
    if (two == "/*") { in_comment = 1; i++; continue }
    if (two == "//") break
    if (c == "\"" || c == "'") quote = c
    out = out c
  }
  quote = "" # literals end on their line
  return out
}
FNR == 1 { in_comment = 0; quote = "" }
{
  code = " " strip($0)
  if (match(code, /[^A-Za-z0-9_](strcpy|strcat|sprintf|vsprintf|strtok|gets|alloca|atoi|atof|atol)[ ]*\(/))
    { print FILENAME ":" FNR ": " substr(code, RSTART + 1, RLENGTH - 1) ") is banned"; bad = 1 }
  if (FILENAME ~ /^src\// && FILENAME !~ /^src\/base\// &&
      match(code, /[^A-Za-z0-9_.>](printf|fprintf|vprintf|vfprintf|puts|fputs|putchar|perror|exit|_exit|abort|getenv|system)[ ]*\(/))
    { print FILENAME ":" FNR ": " substr(code, RSTART + 1, RLENGTH - 1) "): the library neither prints nor exits nor reads the environment"; bad = 1 }
  if (match(code, /chii?_[A-Za-z0-9_]*__/)) { print FILENAME ":" FNR ": two underscores in a row are reserved"; bad = 1 }
}
END { exit bad }
