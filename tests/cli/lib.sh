# Helpers of the tests of the command. Source it from a test that runs in the repository root with BUILD in the environment.
# Each check is one test; the output is cmocka's, which scripts/run_tests.sh counts.
set -u
BUILD=${BUILD:-build}
chiasm=$BUILD/chiasm
T=$(mktemp -d "${CHI_TEST_TMP:-${TMPDIR:-/tmp}}/cli.XXXXXX") || exit 1
tiny=tests/fixtures/tiny-gqa
picture=$tiny/picture.png
question='What is the capital of [this country]?'
unset CHIASM_ISA CHIASM_DATA
tests=0
trap 'rm -rf "$T"; echo "[==========] Running $tests test(s)."; echo "[==========] $tests test(s) run."' EXIT
trap 'exit 1' INT TERM

begin() {
  tests=$((tests + 1))
  echo "[ RUN      ] $1"
}
ok() { echo "[       OK ] $1"; }
bad() { # NAME TEXT
  echo "$2"
  echo "[  FAILED  ] $1"
}

# check NAME COMMAND...: the command succeeds.
check() {
  name=$1
  shift
  begin "$name"
  if "$@" >"$T/check.out" 2>&1; then ok "$name"; else bad "$name" "failed: $* : $(head -c 400 "$T/check.out")"; fi
}

# works NAME ARGUMENTS...: chiasm ends with 0 and says nothing on stderr. Its output stays in $T/out.
works() {
  name=$1
  shift
  begin "$name"
  "$chiasm" "$@" >"$T/out" 2>"$T/err"
  rc=$?
  if [ $rc != 0 ]; then bad "$name" "ended with $rc: $(head -c 400 "$T/err")"
  elif [ -s "$T/err" ]; then bad "$name" "is not silent: $(head -c 400 "$T/err")"
  else ok "$name"; fi
}

# fails STATUS WORDS NAME ARGUMENTS...: chiasm ends with STATUS, writes nothing to stdout and one line to stderr with WORDS in it.
fails() {
  want=$1
  words=$2
  name=$3
  shift 3
  begin "$name"
  "$chiasm" "$@" >"$T/out" 2>"$T/err"
  rc=$?
  lines=$(wc -l <"$T/err")
  if [ $rc != "$want" ]; then bad "$name" "ended with $rc, not $want: $(head -c 400 "$T/err")"
  elif [ "$lines" != 1 ]; then bad "$name" "$lines lines on stderr: $(head -c 400 "$T/err")"
  elif [ -s "$T/out" ]; then bad "$name" "wrote to stdout: $(head -c 200 "$T/out")"
  elif ! grep -qF -e "$words" "$T/err"; then bad "$name" "does not say '$words': $(cat "$T/err")"
  else ok "$name"; fi
}

# model NAME: a copy of the tiny checkpoint to break, as $M.
model() {
  M=$T/$1
  mkdir -p "$M"
  for f in config.json generation_config.json model.safetensors preprocessor_config.json processor_config.json \
    tokenizer.json tokenizer_config.json; do
    if [ -f "$tiny/$f" ]; then cp "$tiny/$f" "$M/$f" && chmod u+w "$M/$f"; fi
  done
}
