// Ask about a picture; run it again while a callback halves what a layer's MLP writes at the constraint's words.
#include <chiasm.h>
#include <stdio.h>

static int halve(void *ud, const chiasm_place *at, float *row, int64_t columns) {
  (void)at;
  ++*(int *)ud;
  for (int64_t i = 0; i < columns; i++) row[i] *= 0.5f;
  return 0; // anything else would stop the run
}

int main(int argc, char **argv) {
  const char *folder = argc > 1 ? argv[1] : "models/demo";
  const char *image = argc > 2 ? argv[2] : "models/demo/samples/peru.png";
  const char *question = argc > 3 ? argv[3] : "What is the capital of [this country]?";
  chiasm_error err = {0};
  chiasm_model *model = NULL;
  chiasm_answer *answer = NULL;
  chiasm_plan *plan = NULL;
  int clean, changed, clean_logits, changed_logits, calls = 0;

  if (chiasm_open(&model, folder, NULL, &err)) goto out;
  if (chiasm_ask(&answer, model, image, question, NULL, &err)) goto out;
  printf("%s\n", answer->text);

  if (chiasm_plan_new(&plan, model, &err)) goto out;
  if (chiasm_root(plan, image, question, &clean, &err)) goto out;
  if (chiasm_child(plan, clean, &changed, &err)) goto out;
  chiasm_where where = {.site = "mlp_out", .layer_lo = 1, .layer_hi = 2, .rows = "constraint"};
  if (chiasm_hook(plan, changed, &where, halve, &calls, &err)) goto out;
  chiasm_where logits = {.site = "logits", .rows = "last"};
  if (chiasm_capture(plan, clean, &logits, &clean_logits, &err)) goto out;
  if (chiasm_capture(plan, changed, &logits, &changed_logits, &err)) goto out;
  if (chiasm_run(plan, &err)) goto out; // both branches in one sweep; rows that cannot differ are computed once

  int64_t rows, vocab;
  int32_t first = answer->tokens[0];
  const float *a = chiasm_values(plan, clean_logits, &rows, &vocab);
  const float *b = chiasm_values(plan, changed_logits, &rows, &vocab);
  printf("p(first token) %.6f, with the change %.6f; %d rows changed\n", chiasm_probability(a, vocab, first),
         chiasm_probability(b, vocab, first), calls);
out:
  if (err.code) fprintf(stderr, "hello: %s\n", err.text);
  chiasm_plan_free(plan);
  chiasm_answer_free(answer);
  chiasm_close(model);
  return err.code ? 1 : 0;
}
