#!/bin/sh
# Make sure that everything needed to build and test is installed. Says nothing and does nothing when it is.
# On Debian and its relatives missing packages are installed with apt (as root, or through sudo); on another system
# the list is printed and the script ends with status 1.
#   bootstrap.sh         what `make build`, `make test` and `make demo` need
#   bootstrap.sh --dev   also what `make check`, `make test-san` and `make fuzz` need
#   bootstrap.sh --list  print the package names and stop
set -eu

tools='cc:gcc cmake:cmake ninja:ninja-build pkg-config:pkg-config make:make'
dev_tools='clang:clang clang-format:clang-format cppcheck:cppcheck git:git'
libs='jansson:libjansson-dev libpcre2-8:libpcre2-dev libutf8proc:libutf8proc-dev libjpeg:libjpeg-dev
  libpng:libpng-dev libwebp:libwebp-dev pangocairo:libpango1.0-dev cairo:libcairo2-dev sqlite3:libsqlite3-dev
  cmocka:libcmocka-dev'

dev=
case "${1:-}" in
  --dev) tools="$tools $dev_tools"; dev=1 ;;
  --list)
    for pair in $tools $libs; do echo "${pair#*:}"; done
    echo libc6-dev
    exit 0 ;;
  '') ;;
  *) echo "usage: scripts/bootstrap.sh [--dev | --list]" >&2; exit 2 ;;
esac

missing() {
  for pair in $tools; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || printf '%s ' "${pair#*:}"
  done
  # A compiler without the C library's headers cannot build anything.
  if command -v cc >/dev/null 2>&1; then
    echo '#include <stdio.h>' | cc -E -x c - >/dev/null 2>&1 || printf 'libc6-dev '
  else
    printf 'libc6-dev '
  fi
  # clang's sanitizers live in a package of their own, which carries clang's version in its name.
  if [ -n "$dev" ] && ! echo 'int main(void) { return 0; }' | clang -x c - -fsanitize=address -o /dev/null 2>/dev/null; then
    version=$(clang -dumpversion 2>/dev/null || echo 14)
    printf 'libclang-rt-%s-dev ' "${version%%.*}"
  fi
  for pair in $libs; do
    pkg-config --exists "${pair%%:*}" >/dev/null 2>&1 || printf '%s ' "${pair#*:}"
  done
}

need=$(missing)
[ -z "$need" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
  echo "chiasm needs these, by their Debian names; install them with your system's package manager:" >&2
  printf '  %s\n' $need >&2
  exit 1
fi
sudo=
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null 2>&1; then
    echo "chiasm needs these packages and there is no sudo; as root run: apt-get install $need" >&2
    exit 1
  fi
  sudo=sudo
fi
echo "installing with apt: $need"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt="$sudo env DEBIAN_FRONTEND=noninteractive apt-get"
install() { $apt install -y --no-install-recommends $need >"$log" 2>&1; }
# A machine that never updated its lists, or whose lists are old, needs an update first.
if ! install; then
  if ! { $apt update >"$log" 2>&1 && install; }; then
    tail -n 15 "$log" >&2
    echo "apt could not install: $need" >&2
    exit 1
  fi
fi
left=$(missing)
if [ -n "$left" ]; then
  echo "still missing after the installation: $left" >&2
  exit 1
fi
