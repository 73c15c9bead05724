#!/bin/sh
# The public header compiles alone, and its example runs.
. tests/cli/lib.sh

cc=${CC:-cc}
printf '#include <chiasm.h>\n#include <chiasm.h>\nint unused(void);\n' >"$T/header.c"
if command -v "$cc" >/dev/null 2>&1; then
  check 'C17, pedantic' "$cc" -std=c17 -pedantic -Wall -Wextra -Werror -Iinclude -fsyntax-only "$T/header.c"
fi
if command -v c++ >/dev/null 2>&1; then
  check 'C++17, pedantic' c++ -std=c++17 -pedantic -Wall -Wextra -Werror -Iinclude -fsyntax-only -x c++ "$T/header.c"
fi
check 'the example' "$BUILD/examples/hello" "$tiny" "$picture" "$question"
cp "$T/check.out" "$T/hello.out"
check 'the example says p twice' grep -q 'p(first token) 0\.[0-9]*, with the change 0\.[0-9]*; [1-9][0-9]* rows changed' "$T/hello.out"
begin 'the example fails in one line'
"$BUILD/examples/hello" "$T/none" >"$T/out" 2>"$T/err"
if [ $? = 1 ] && [ "$(wc -l <"$T/err")" = 1 ]; then ok 'the example fails in one line'; else bad 'the example fails in one line' "$(cat "$T/err")"; fi
