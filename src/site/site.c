/* Tables made from sites.def. */
#include "site/site.h"

static const chi_site_info kSites[CHI_SITE_COUNT] = {
#define CHI_SITE(E, name, stage, per_layer, unit, doc) {name, CHI_ST_##stage, per_layer, CHI_UNIT_##unit, doc},
#include "site/sites.def"
#undef CHI_SITE
};
static const char *const kStacks[CHI_STACK_COUNT] = {"vision", "qformer", "projector", "decoder"};
static const char *const kOps[CHI_OP_COUNT] = {"set",     "copy",  "add", "scale",    "zero",      "noise",
                                               "project", "token", "cut", "cut_zero", "cut_scale", "call"};

const char *chi_stack_name(chi_stack s) { return (unsigned)s < CHI_STACK_COUNT ? kStacks[s] : "?"; }
const chi_site_info *chi_site_get(chi_site s) { return &kSites[s]; }
const char *chi_op_name(chi_op op) { return (unsigned)op < CHI_OP_COUNT ? kOps[op] : "?"; }

int chi_site_parse(chi_site *out, const char *name, chi_err *err) {
  chi_str all = {0};
  for (int i = 0; i < CHI_SITE_COUNT; i++) {
    if (chi_streq(kSites[i].name, name)) {
      *out = (chi_site)i;
      chi_str_free(&all);
      return 0;
    }
    chi_str_addf(&all, "%s%s", i ? " " : "", kSites[i].name);
  }
  int rc = chi_fail(err, CHI_ERR_ARG, "unknown site '%s'; sites are: %s", name, all.s ? all.s : "");
  chi_str_free(&all);
  return rc;
}

int chi_stack_parse(chi_stack *out, const char *name, chi_err *err) {
  for (int i = 0; i < CHI_STACK_COUNT; i++) {
    if (chi_streq(kStacks[i], name)) {
      *out = (chi_stack)i;
      return 0;
    }
  }
  return chi_fail(err, CHI_ERR_ARG, "unknown stack '%s'; stacks are: vision qformer projector decoder", name);
}

bool chi_site_is_pattern(chi_site site) { return site == CHI_SITE_PATTERN || site == CHI_SITE_X_PATTERN; }

bool chi_site_is_cross(chi_site site) {
  return site == CHI_SITE_X_Q || site == CHI_SITE_X_PATTERN || site == CHI_SITE_X_HEAD_OUT ||
         site == CHI_SITE_X_ATTN_OUT || site == CHI_SITE_X_RESID_MID;
}

int32_t chi_site_keys(const chi_shape *s, chi_stack stack, chi_site site, int32_t row, int32_t rows) {
  if (site == CHI_SITE_X_PATTERN) return s->stack[stack].cross_keys;
  return s->stack[stack].causal ? row + 1 : rows;
}

int32_t chi_site_heads(const chi_shape *s, chi_stack stack, chi_site site) {
  const chi_stack_shape *k = &s->stack[stack];
  return site == CHI_SITE_K || site == CHI_SITE_V ? k->kv_heads : k->heads;
}

int64_t chi_site_width(const chi_shape *s, chi_stack stack, chi_site site, int32_t n_keys) {
  const chi_stack_shape *k = &s->stack[stack];
  if (!k->present) return 0;
  if (stack == CHI_PROJECTOR) return site == CHI_SITE_MLP_ACT ? k->ffn : site == CHI_SITE_MLP_OUT ? k->d : 0;
  if (chi_site_is_cross(site) && k->cross_every == 0) return 0;
  switch (site) {
    case CHI_SITE_IMAGE_EMBED:
      return stack == CHI_DECODER && s->n_image_rows > 0 ? k->d : 0;
    case CHI_SITE_FINAL_NORM:
      return stack == CHI_DECODER || k->final_norm ? k->d : 0;
    case CHI_SITE_LOGITS:
      return stack == CHI_DECODER ? s->vocab : 0;
    case CHI_SITE_Q:
    case CHI_SITE_HEAD_OUT:
    case CHI_SITE_X_Q:
    case CHI_SITE_X_HEAD_OUT:
      return (int64_t)k->heads * k->head_dim;
    case CHI_SITE_K:
    case CHI_SITE_V:
      return (int64_t)k->kv_heads * k->head_dim;
    case CHI_SITE_PATTERN:
    case CHI_SITE_X_PATTERN:
      return (int64_t)k->heads * n_keys;
    case CHI_SITE_MLP_ACT:
      return k->ffn;
    case CHI_SITE_EMBED:
    case CHI_SITE_RESID_PRE:
    case CHI_SITE_ATTN_OUT:
    case CHI_SITE_RESID_MID:
    case CHI_SITE_MLP_OUT:
    case CHI_SITE_RESID_POST:
    case CHI_SITE_X_ATTN_OUT:
    case CHI_SITE_X_RESID_MID:
      return k->d;
    case CHI_SITE_COUNT:
      break;
  }
  return 0;
}
