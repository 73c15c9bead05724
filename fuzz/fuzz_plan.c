/* Plan files: whatever the text says, loading ends in a plan that passes the checks or in one line. The model is the
 * smallest fixture; opened once. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "analyze/plan_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static chi_model *m;
  static chi_prompt *p;
  static char path[64];
  chi_err e = {0};
  chi_plan_file *f = NULL;
  if (!m) {
    snprintf(path, sizeof path, "/tmp/chiasm-fuzz-plan-%d.json", (int)getpid());
    if (chi_model_open(&m, "tests/fixtures/tiny-llama", CHI_DTYPE_F32, &e)) __builtin_trap();
    if (chi_prompt_make(&p, m,
                        &(chi_prompt_opts){
                            .question = "The capital of [this country] is", .tmpl = "plain", .need_constraint = true},
                        &e))
      __builtin_trap();
  }
  FILE *out = fopen(path, "wb");
  if (!out) return 0;
  fwrite(data, 1, size, out);
  fclose(out);
  int rc = chi_plan_load(&f, path, &(chi_plan_context){.model = m, .prompt = p}, &e);
  unlink(path);
  if (rc != 0 && (e.code == 0 || e.text[0] == 0 || strchr(e.text, '\n'))) __builtin_trap();
  if (rc == 0 && chi_plan_check(f->plan, &m->net.shape, &e) != 0 && strchr(e.text, '\n')) __builtin_trap();
  chi_plan_file_free(rc == 0 ? f : NULL);
  return 0;
}
