/* The sweep against its definition, the dense executor, on random plans over random networks: every captured bit,
 * and what callbacks saw.
 *
 * Tried by hand, each must fail here (or, where marked, in test_sweep_bits.c). In live.c: no births at mix, or a
 * layer late; kv_layer one late, one early (bits: the count of live rows) or late for inputs; a tower treated as
 * causal, in births or in keys; no need for what a copy reads, or for the row of the same number; no need for the
 * parent's row of a newborn; keys needed only from lo + 1, not handed up to the parent, or not taken from children;
 * births counted as deaths at the same time; lo without the picture, or a tower's lo at its row; hidden neurons born
 * at their own stage; a copy before a callback at one row. In layers.c: a newborn that runs its parent's
 * interventions again or not its own, or does not take component or layer input; key blocks not copied or written in
 * place; queries of the own slot; edges dropped; parallel blocks that read the sum; weights replaced without a
 * second attention; offsets of chunks (bits). In sweep.c: a projector that does not see a change of tower, Q-Former
 * or its own, or that the decoder does not see; the head without sources, unsorted, or from the wrong row; pieces
 * without sources (both), with targets twice (bits). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/randplan.h"
#include "support/support.h"

#ifdef __SANITIZE_ADDRESS__
enum { PLANS = 1200, FEWER = 1, PLANS_PER_NET = 4 };
#else
enum { PLANS = 4000, FEWER = 0, PLANS_PER_NET = 4 };
#endif

/* "one seed" from the command line: that plan alone, printed. */
static uint64_t only;

/* Four plans per network; every fourth network has a Q-Former (tests/test_qformer.c has more of them). */
static void make_net(randnet *n, uint64_t seed) {
  uint64_t k = seed / PLANS_PER_NET;
  bool queries = k % 4 == 0;
  randnet_make(
      n,
      &(randnet_opts){
          .post_norm = true, .seed = 1000003u * k + 17, .vision = queries ? 1 : -1, .compute = -1, .qformer = queries});
}

/* 1 = compared, 0 = refused as a cycle. */
static int compare(const randnet *n, uint64_t seed, randplan_cover *cover, chi_run_stats *stats) {
  randplan p;
  results sweep, dense;
  chi_err err = {0}, err2 = {0};
  randplan_make(&p, n, &(randplan_opts){.seed = seed, .cycles = true}, cover);
  if (only) randplan_print(p.plan);
  randplan_call seen[RANDPLAN_CALLS];
  int rc = results_run(&sweep, &n->net, p.plan, &(chi_run_opts){.executor = CHI_EXEC_SWEEP, .stats = stats}, &err);
  memcpy(seen, p.call, sizeof seen);
  for (int i = 0; i < RANDPLAN_CALLS; i++) p.call[i].rows = p.call[i].sum = 0;
  int rc2 = results_run(&dense, &n->net, p.plan, &(chi_run_opts){.executor = CHI_EXEC_DENSE}, &err2);
  if (rc != rc2 || (rc && !strstr(err.text, "cycle")))
    fail_msg("plan %llu: sweep %s, dense %s", (unsigned long long)seed, err.text, err2.text);
  const char *differ = rc ? NULL : results_differ(&sweep, &dense);
  if (!rc && memcmp(seen, p.call, sizeof seen) != 0) differ = "what a callback saw";
  if (differ) {
    randplan_print(p.plan);
    fail_msg("plan %llu on %s:\n  sweep and dense differ at %s\n  alone: build/tests/test_sweep %llu",
             (unsigned long long)seed, randnet_name(n), differ, (unsigned long long)seed);
  }
  results_free(&sweep);
  results_free(&dense);
  randplan_free(&p);
  return rc == 0;
}

static void check_cover(const randplan_cover *c, const chi_shape *s) {
  for (int stack = 0; stack < CHI_STACK_COUNT; stack++)
    for (int site = 0; site < CHI_SITE_COUNT; site++) {
      if (chi_site_width(s, (chi_stack)stack, (chi_site)site, 1) == 0) continue;
      if (!c->capture[stack][site])
        fail_msg("no plan captured %s.%s", chi_stack_name((chi_stack)stack), chi_site_get((chi_site)site)->name);
      for (int op = 0; op < CHI_OP_COUNT; op++)
        if (randplan_allowed(s, (chi_stack)stack, (chi_site)site, (chi_op)op) && !c->op[stack][site][op])
          fail_msg("no plan had %s at %s.%s", chi_op_name((chi_op)op), chi_stack_name((chi_stack)stack),
                   chi_site_get((chi_site)site)->name);
    }
  for (int i = 0; i < CHI_KV_BLOCK; i++)
    if (c->fork[i] < 10) fail_msg("only %lld branches fork at offset %d of a key block", (long long)c->fork[i], i);
  for (int i = 0; i < 4; i++) assert_true(c->depth[i] > 100);
  assert_true(c->mapped_copies > 100 && c->parts > 100 && c->windows > 100);
}

static void test_random_plans(void **state) {
  (void)state;
  randplan_cover cover = {0};
  randnet n;
  chi_shape shape[2] = {0}; /* of a network with a plain projector, and with a Q-Former */
  int64_t live = 0, full = 0;
  int done = 0;
  for (uint64_t seed = only ? only : 1; seed <= (only ? only : PLANS); seed++) {
    if (only || seed % PLANS_PER_NET == 0 || seed == 1) make_net(&n, seed);
    if (n.net.has_vision && (!n.net.has_qformer || n.net.vision.post.w)) shape[n.net.has_qformer] = n.net.shape;
    chi_run_stats st = {0};
    done += compare(&n, seed, &cover, &st);
    live += st.live_row_layers;
    full += st.dense_row_layers;
    if (only || seed % PLANS_PER_NET == PLANS_PER_NET - 1 || seed == PLANS) randnet_free(&n);
  }
  if (only) return;
  print_message("%d plans, %lld branches, equal bits; %d refused as cycles; %lld of %lld row-layers computed\n", done,
                (long long)cover.branches, PLANS - done, (long long)live, (long long)full);
  assert_true(done >= 1000);
  for (int i = 0; i < 2 && !FEWER; i++) check_cover(&cover, &shape[i]);
}

int main(int argc, char **argv) {
  chi_err err = {0};
  if (chi_cpu_init(NULL, &err)) return 1;
  if (argc > 1) only = strtoull(argv[1], NULL, 10);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_plans)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
