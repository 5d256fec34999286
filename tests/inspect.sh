#!/bin/sh
# kivi-inspect on the pinned files and on what is none: inspect.sh <files> <work directory> <command>...
# The command has several words where an emulator runs the program.
set -eu

files=$1
work=$2
shift 2
command=$*
rm -rf "$work"
mkdir -p "$work"

expect() { # <file> <text>
    grep -q -e "$2" "$1" || {
        echo "$1 lacks: $2" >&2
        cat "$1" >&2
        exit 1
    }
}

refuse() { # <what> <argument>...: one line, and no success
    what=$1
    shift
    if $command "$@" >"$work/out" 2>"$work/err"; then
        echo "$what: accepted" >&2
        exit 1
    fi
    if [ "$(wc -l <"$work/err")" -ne 1 ] || [ -s "$work/out" ]; then
        echo "$what: not one line of error" >&2
        cat "$work/out" "$work/err" >&2
        exit 1
    fi
}

for file in "$files"/*.kivi; do
    $command "$file" --svg "$work/scales.svg" >"$work/text"
    $command "$file" --json >"$work/json"
    expect "$work/text" "sound"
    expect "$work/json" '"rms_error"'
    expect "$work/scales.svg" "</svg>"
done
$command "$files/mixed.kivi" >"$work/text"
expect "$work/text" "2 layers, 2 kv heads, dimension 24 of keys and 40 of values"
expect "$work/text" "keys     16  f16, not quantized"

refuse "a missing file" "$work/none.kivi"
refuse "no file"
refuse "an unknown option" --what
: >"$work/empty.kivi"
refuse "an empty file" "$work/empty.kivi"
for bytes in 20 56 100 1000 20000; do
    head -c "$bytes" "$files/mixed.kivi" >"$work/cut.kivi"
    refuse "the first $bytes bytes" "$work/cut.kivi"
done
{ cat "$files/mixed.kivi" && echo; } >"$work/long.kivi"
refuse "a byte too many" "$work/long.kivi"
{ head -c 5000 "$files/mixed.kivi" && printf X && tail -c +5002 "$files/mixed.kivi"; } >"$work/bad.kivi"
refuse "a damaged byte" "$work/bad.kivi"
refuse "a picture that cannot be written" "$work/empty.kivi" --svg "$work/none/x.svg"
