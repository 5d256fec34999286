#!/bin/sh
# kivi-inspect on the pinned files and on what is none: inspect.sh <files> <work directory> <command>...
# The command has several words where an emulator runs the program.
set -eu

files=$1
work=$2
shift 2
tool=$*
rm -rf "$work"
mkdir -p "$work"
. "$(dirname "$0")/support/refuse.sh"

expect() { # <file> <text>
    grep -q -e "$2" "$1" || {
        echo "$1 lacks: $2" >&2
        cat "$1" >&2
        exit 1
    }
}

for file in "$files"/*.kivi; do
    $tool "$file" --svg "$work/scales.svg" >"$work/text"
    $tool "$file" --json >"$work/json"
    expect "$work/text" "sound"
    expect "$work/json" '"rms_error"'
    expect "$work/scales.svg" "</svg>"
done
$tool "$files/mixed.kivi" >"$work/text"
expect "$work/text" "2 layers, 2 kv heads, dimension 24 of keys and 40 of values"
expect "$work/text" "keys     16  f16, not quantized"
expect "$work/text" "^1048576  *50 " # the handle as messages and JSON have it

refuse 1 "cannot be opened" "$work/none.kivi"
refuse 2 "which file"
refuse 2 "unknown option '--what'" --what
refuse 2 "--svg needs a value" "$files/mixed.kivi" --svg
refuse 2 "one file at a time" "$files/mixed.kivi" "$files/mixed.kivi"
: >"$work/empty.kivi"
refuse 1 "the file is empty" "$work/empty.kivi"
echo "The text of a letter, which is longer than a header would be." >"$work/letter"
refuse 1 "this is not a saved cache" "$work/letter"
for bytes in 4 20 56 100 140 1000 20000; do
    head -c "$bytes" "$files/mixed.kivi" >"$work/cut.kivi"
    refuse 1 "the file ends early" "$work/cut.kivi"
done
{ cat "$files/mixed.kivi" && echo; } >"$work/long.kivi"
refuse 1 "more after the last sequence" "$work/long.kivi"
damage() { # <offset>: another byte there
    { head -c "$1" "$files/mixed.kivi" && printf X && tail -c "+$(($1 + 2))" "$files/mixed.kivi"; } \
        >"$work/bad.kivi"
}
damage 8 && refuse 1 "another version" "$work/bad.kivi"
damage 20 && refuse 1 "the header is damaged" "$work/bad.kivi"
damage 68 && refuse 1 "the record of a layer is damaged" "$work/bad.kivi"
damage 5000 && refuse 1 "the checksum of a layer does not match" "$work/bad.kivi"
refuse 1 "none/x.svg cannot be written" "$files/mixed.kivi" --svg="$work/none/x.svg"
fill "$files/mixed.kivi"
fill "$files/mixed.kivi" --json
