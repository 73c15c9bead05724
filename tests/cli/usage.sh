#!/bin/sh
# Every command of the table: help, wrong usage, and docs/cli.md made from the same tables.
. tests/cli/lib.sh

works 'help' --help
works 'version' --version
check 'version is on one line' sh -c "[ \$(wc -l <'$T/out') = 1 ]"
commands=$(sed -n 's/^CLI_COMMAND(\([a-z_]*\),.*/\1/p' cli/commands.def) # a_b is the command "a b"
for row in $commands; do
  c=$(echo "$row" | tr _ ' ')
  works "$c --help" $c --help
  check "$c --help tells its options" grep -q -e '--help' "$T/out"
  check "$c --help is at most 100 columns" sh -c "! sed '/^Examples:/,\$d' '$T/out' | grep '.\{101\}'"
  works "$c -h" $c -h
  fails 2 "no option '--no-such-option'; see 'chiasm $c --help'" "$c: unknown option" $c --no-such-option
  case $("$chiasm" $c --help | grep '^Usage: ') in
    *...*) ;; # any number of words
    *) fails 2 'too many words' "$c: too many words" $c a b c d e ;;
  esac
done
for row in $commands; do
  c=$(echo "$row" | tr _ ' ')
  case $c in help) continue ;; esac
  fails 2 "$c needs" "$c: no words" $c
done
fails 2 "see 'chiasm --help'" 'no command'
fails 2 "no command 'frobnicate'; see 'chiasm --help'" 'unknown command' frobnicate
fails 2 "no command 'frobnicate'" 'help on nothing' help frobnicate
fails 2 'did you mean --max-new?' 'near miss' ask --max-mew 3 m q
fails 2 '--dtype is one of auto|f32|bf16' 'bad choice' ask --dtype f16 m q
fails 2 "--top needs a whole number from 0 to 1000, not 'x'" 'bad number' ask --top x m q
fails 2 '--top needs a whole number' 'number out of range' ask --top=-3 m q
fails 2 '--mem needs a size' 'bad size' ask --mem lots m q
fails 2 '--top needs a value' 'missing value' ask m q --top
fails 2 '--json takes no value' 'value for a flag' ask --json=1 m q
fails 2 '--site LIST is required' 'capture without sites' capture m q -o x
fails 2 '-o FILE is required' 'capture without output' capture m q --site q
fails 2 '--plan FILE is required' 'run without a plan' run m q
fails 2 "unknown site 'nose'" 'unknown site' capture "$tiny" "$picture" Why --site nose -o "$T/x"
fails 2 'twice' 'a site twice' capture "$tiny" "$picture" Why --site q,q -o "$T/x"
works 'markdown' help --markdown
check 'docs/cli.md is what help --markdown prints' cmp "$T/out" docs/cli.md
works 'options after words, and --' ask "$tiny" --top=2 --max-new 1 -- 'Why?'
