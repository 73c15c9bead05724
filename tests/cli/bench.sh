#!/bin/sh
# chiasm bench: every measurement that a tiny model is enough for, once.
. tests/cli/lib.sh

for what in load prefill decode; do
  works "bench $what" bench $what "$tiny" --runs 1
  check "bench $what has a row" grep -q "$what" "$T/out"
done
check 'bench trace' sh -c "'$chiasm' bench trace '$tiny' '$picture' 'What is [this thing]?' --runs 1 --json -q >'$T/out'"
check 'bench trace as JSON' grep -q '"unit": "cells/s"' "$T/out"
fails 2 'takes MODEL' 'bench load without a model' bench load
fails 2 "no measurement 'speed'" 'an unknown measurement' bench speed
works 'bench attribute' bench attribute "$tiny" "$picture" 'What is it?' --runs 1 --sample 4 --quiet
check 'bench attribute counts patches' grep -q '16 of 16 patches, edges to the text cut' "$T/out"
