#!/bin/sh
# kivi-lm's command line and its files: lm.sh <folder of the model> <work directory> <command>...
# The command has several words where an emulator runs the program.
set -eu

folder=$1
work=$2
shift 2
tool=$*
rm -rf "$work"
mkdir -p "$work"
. "$(dirname "$0")/support/refuse.sh"
generate="generate --model $folder/mini.gguf --prompt The --n 4 --temp 0"

refuse 2 "--group takes 32, 64 or 128, not '33'" $generate --group 33
refuse 2 "a multiple of the group, 32, not '100'" $generate --residual=100
refuse 2 "a multiple of the group, 128, not '64'" $generate --group=128 --residual 64
refuse 2 "--backend takes one of scalar" $generate --backend none
refuse 2 "needs a value" $generate --seed
refuse 2 "takes no value" $generate --precise=1
refuse 1 "$work/none/x: cannot be written" $generate --save "$work/none/x"

# A file is written anew, and is as it was where nothing is generated.
$tool $generate --save "$work/a" >"$work/out" 2>"$work/err"
[ "$(wc -c <"$work/out")" -eq 8 ] || die "not the prompt, four bytes and a newline"
cp "$work/a" "$work/b"
$tool $generate --save="$work/b" >"$work/out" 2>"$work/err"
cmp "$work/a" "$work/b" || die "saved over a file, it is another"
refuse 2 "--group" $generate --group 33 --save "$work/b"
cmp "$work/a" "$work/b" || die "a refused call has changed a file"

fill $generate
fill eval --model "$folder/mini.gguf" --text "$folder/sample.txt" --ctx 8 --windows 1
fill eval --model "$folder/mini.gguf" --text "$folder/sample.txt" --ctx 8 --windows 1 --json
if [ -c /dev/full ]; then
    status=0
    $tool $generate --save /dev/full >"$work/out" 2>"$work/err" || status=$?
    [ $status -eq 1 ] || die "--save /dev/full: exit status $status"
    grep -q "/dev/full: cannot be written" "$work/err" || die "--save /dev/full"
fi
