#!/bin/sh
# What `make install` puts down works from there: the program finds its demo model from any folder, and a C program builds
# against the library with pkg-config alone.
. tests/cli/lib.sh

T=$(cd "$T" && pwd) # the test changes its folder
export DESTDIR=
check 'install' cmake --install "$BUILD" --prefix "$T/root"
cd "$T" || exit 1
case $BUILD in /*) ;; *) BUILD=$OLDPWD/$BUILD ;; esac
check 'the program runs from elsewhere' "$T/root/bin/chiasm" info demo
pc=$(dirname "$(find "$T/root" -name chiasm.pc)")
export PKG_CONFIG_PATH="$pc"
cc=${CC:-cc}
if command -v "$cc" >/dev/null 2>&1 && [ "${SAN:-}" = '' ] && ! nm "$T/root/bin/chiasm" | grep -q __asan_init; then
  # shellcheck disable=SC2046
  check 'the example builds with pkg-config' "$cc" "$OLDPWD/examples/hello.c" -o "$T/hello" $(pkg-config --cflags --libs chiasm)
  check 'and runs' "$T/hello" "$OLDPWD/$tiny" "$OLDPWD/$picture" "$question"
fi
