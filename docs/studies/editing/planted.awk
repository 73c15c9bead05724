# models/demo/planted/planted.jsonl as edit sets, one for each planted layer: every planted fact gets the answer of the next fact
# of its relation and layer. Asked beside it: the fact in two other wordings; as (a) two other planted facts of the relation; as
# (b) two other relations of the same entity; as (e) the region of two others.
#   awk -v dir=DIR -f planted.awk models/demo/planted/planted.jsonl     writes DIR/planted-LAYER.jsonl
BEGIN {
  FS = "\""
  ask["capital"] = "What is the capital of [%s]?|Name the capital of [%s].|Tell me the capital of [%s]."
  ask["currency"] = "What is the currency of [%s]?|Name the currency of [%s].|Tell me the currency of [%s]."
  ask["language"] = "What is the language of [%s]?|Name the language of [%s].|Tell me the language of [%s]."
  ask["code"] = "What is the calling code of [%s]?|Name the calling code of [%s].|Tell me the calling code of [%s]."
  split("capital currency language code", relations, " ")
}
{
  layer[NR] = $7
  gsub(/[^0-9]/, "", layer[NR])
  entity[NR] = $10
  relation[NR] = $14
  answer[NR] = $18
  question[NR] = $22
}
function wording(r, e, k, part) {
  split(ask[r], part, "|")
  return sprintf(part[k], e)
}
function next_of(i, k) { # the k-th fact after i with its relation and layer, in a circle
  for (j = i; k > 0;) {
    j = j % NR + 1
    if (layer[j] == layer[i] && relation[j] == relation[i]) k--
  }
  return j
}
function probe(q, a) { return sprintf("{\"image\":null,\"question\":\"%s\"%s}", q, a == "" ? "" : ",\"answer\":\"" a "\"") }
END {
  for (i = 1; i <= NR; i++) {
    a = next_of(i, 1)
    b = next_of(i, 2)
    for (k = 1; relations[k] != relation[i]; k++);
    one = relations[k % 4 + 1]
    two = relations[(k + 1) % 4 + 1]
    printf "{\"id\":\"planted-%s-%02d\",\"kind\":\"planted\",\"entity\":\"%s\",\"relation\":\"%s\",\"unit\":\"%s|%s\"," \
           "\"request\":{\"image\":null,\"question\":\"%s\",\"target\":\"%s\",\"old\":\"%s\"},\"probes\":{" \
           "\"paraphrase\":[%s,%s],\"same_question\":[%s,%s],\"same_picture\":[%s,%s],\"other_text\":[%s,%s]}}\n",
           layer[i], ++number[layer[i]], entity[i], relation[i], entity[i], relation[i], question[i], answer[a], answer[i],
           probe(wording(relation[i], entity[i], 2), answer[a]), probe(wording(relation[i], entity[i], 3), answer[a]),
           probe(question[a], answer[a]), probe(question[b], answer[b]),
           probe(wording(one, entity[i], 1), ""), probe(wording(two, entity[i], 1), ""),
           probe("In which region is [" entity[a] "]?", ""), probe("In which region is [" entity[b] "]?", "") \
           > (dir "/planted-" layer[i] ".jsonl")
  }
}
