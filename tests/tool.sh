#!/bin/sh
# What all tools do alike: tool.sh <name> <manual> <sub-commands> <work directory> <command>...
# The command has several words where an emulator runs the program.
set -eu

name=$1
manual=$2
commands=$3
work=$4
shift 4
tool=$*
rm -rf "$work"
mkdir -p "$work"
. "$(dirname "$0")/support/refuse.sh"

answer() { # <argument>...: on standard output
    $tool "$@" >"$work/out" 2>"$work/err" || die "failed: $*"
    if [ ! -s "$work/out" ] || [ -s "$work/err" ]; then
        die "no answer on standard output: $*"
    fi
}

: >"$work/help"
for command in "" $commands; do
    answer $command --help
    mv "$work/out" "$work/long"
    cat "$work/long" >>"$work/help"
    answer $command -h
    cmp "$work/long" "$work/out" || die "-h is not --help: $command"
    answer $command --version
    grep -q "^$name, libkivi [0-9.]*$" "$work/out" || die "another version: $command"
    refuse 2 "" $command --no-such-option
    fill $command --help
    fill $command --version
done

# The help and the manual have the same options.
sed -n 's/^ \{1,4\}\(--[a-z-]*\).*/\1/p' "$work/help" | sort -u >"$work/options"
grep -oE -e 'Fl -[a-z][a-z-]*' "$manual" | sed 's/^Fl /-/' | sort -u >"$work/documented"
diff "$work/options" "$work/documented" >"$work/out" || die "--help (<) and $manual (>) differ"
[ "$(wc -l <"$work/options")" -ge 4 ] || die "$name --help has hardly an option"
