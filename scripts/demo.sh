#!/bin/sh
# The main job on the embedded model: ask about a picture, trace the answer, write the causal map to out/demo/.
set -eu
cd "$(dirname "$0")/.."
chiasm=${CHIASM:-build/chiasm}
picture=models/demo/samples/peru.png
donor=models/demo/samples/japan.png
out=out/demo
say() { printf '\n$ chiasm %s\n' "$*"; }

say ask demo $picture '"What is the capital of this country?"'
$chiasm ask demo $picture "What is the capital of this country?"

say trace demo $picture '"What is the capital of [this country]?"' --donor $donor --window 3 --check 8 -o $out
$chiasm trace demo $picture "What is the capital of [this country]?" --donor $donor --window 3 --check 8 -o $out

printf '\nLook at %s/trace.png; %s/trace.csv has the numbers.\n' $out $out
