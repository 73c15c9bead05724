#include "support/xml.h"

#include <stdio.h>
#include <string.h>

#include "support/support.h"

/* Tags nest, attributes are quoted, entities are known. Enough of XML for what cairo and we write. */
void check_xml(const char *s) {
  char stack[64][32];
  int depth = 0, elements = 0;
  for (; *s; s++) {
    if (*s == '&')
      assert_true(strncmp(s, "&lt;", 4) == 0 || strncmp(s, "&gt;", 4) == 0 || strncmp(s, "&amp;", 5) == 0 ||
                  strncmp(s, "&quot;", 6) == 0);
    assert_int_not_equal(*s, '>');
    assert_true((unsigned char)*s >= 32 || *s == '\n' || *s == '\t');
    if (*s != '<') continue;
    bool close = s[1] == '/', other = s[1] == '?' || s[1] == '!', quoted = false;
    const char *name = s + 1 + close;
    size_t len = strcspn(name, " >/\n");
    for (s++; *s && (quoted || *s != '>'); s++) {
      if (*s == '"') quoted = !quoted;
      assert_int_not_equal(*s, '<');
    }
    assert_int_equal(*s, '>');
    if (other) continue;
    assert_true(len > 0 && len < 32);
    if (close) {
      assert_true(depth > 0);
      depth--;
      assert_true(strlen(stack[depth]) == len && strncmp(stack[depth], name, len) == 0);
    } else if (s[-1] != '/') {
      assert_true(depth < 64);
      snprintf(stack[depth++], 32, "%.*s", (int)len, name);
    }
    elements++;
  }
  assert_int_equal(depth, 0);
  assert_true(elements > 50);
}
