#!/bin/sh
# The promises of the card, side by side for several trainings of the demo model, as a Markdown table.
#
#   scripts/demo_seeds.sh models/demo out/demo-seed2 ...     (JSON of each in OUT=out/seeds, kept; needs jq)
set -eu
chiasm=${CHIASM:-$(dirname "$0")/../build/chiasm}
items=$(dirname "$0")/../models/demo/eval/items.jsonl
out=${OUT:-out/seeds}
mkdir -p "$out"
for model; do
  file=$out/$(basename "$model").json
  # a broken promise is a row of the table here, not an end
  [ -s "$file" ] || { "$chiasm" eval "$model" --items "$items" --require --json -q >"$file.part" || true
    mv "$file.part" "$file"; }
  set -- "$@" "$file"
  shift
done
jq -rs '
  def shown: if .need > 1 then .got | round else (if (.what | test("lowers p")) then .got else 100 * .got end) * 10 |
    round / 10 end | tostring;
  def need: if .at_most then "≤ " else "≥ " end +
    (if .need > 1 or (.what | test("lowers p")) then .need else 100 * .need * 10 | round / 10 end | tostring);
  . as $runs |
  "| promise (% unless said) | needed | " + (map(.provenance.model | split("/") | last) | join(" | ")) + " |",
  "| --- | ---: |" + ([range(length)] | map(" ---: |") | join("")),
  (range($runs[0].promises | length) as $i | $runs[0].promises[$i] |
    "| \(.what) | \(need) | " + ($runs | map(.promises[$i] | shown + (if .holds then "" else " ✗" end)) | join(" | ")) + " |"),
  (("fact", "two_flags") as $form | "| group B, \($form), reported | | " + ($runs | map(.groups[] |
    select(.form == $form and .entity_group == "B") | 1000 * .share | round / 10 | tostring) | join(" | ")) + " |")
' "$@"
