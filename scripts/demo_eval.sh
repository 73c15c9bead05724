#!/bin/sh
# What the demo model can do, measured by the C program on its committed items; fails if a promise of its card is broken.
set -eu
cd "$(dirname "$0")/.."
exec "${CHIASM:-build/chiasm}" eval demo --cells --require "$@"
