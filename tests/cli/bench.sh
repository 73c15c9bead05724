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
fails 2 'writes into a folder' 'bench growth without a folder' bench growth
works 'bench growth' bench growth --runs 1 --sample 1 --quiet -o "$T/growth"
check 'bench growth has three points' sh -c "[ \$(wc -l <'$T/growth/growth.csv') = 4 ]"
check 'bench growth draws' sh -c "ls '$T/growth/growth-layers.png' '$T/growth/growth-text.png' '$T/growth/growth-picture.png' >'$T/out'"
check 'bench growth removes its models' sh -c "[ ! -e '$T/growth/growth-model' ]"
works 'synth with other sizes' synth tiny-llava "$T/small" --layers 2 --image 56
works 'synth with a tokenizer' synth tiny-llava "$T/words" --tokenizer "$T/small/tokenizer.json"
works 'a model of that tokenizer answers' ask "$T/words" "$picture" 'What is it?' --max-new 1
fails 1 'is no tokenizer.json' 'a tokenizer that is none' synth tiny-llava "$T/none" --tokenizer "$T/small/config.json"
fails 1 'the shape' 'a tokenizer too large' synth tiny-llava "$T/none" --tokenizer models/demo/tokenizer.json
check 'two layers, sixteen rows' sh -c "'$chiasm' info '$T/small' | grep -q '4x4, 16 rows'"
fails 1 'cannot have another size' 'a picture of a text model' synth tiny-llama "$T/none" --image 56
