#!/bin/sh
# What the built libraries and kernel objects show to the linker.
#
#   symbols.sh <kivi.h> <libkivi.so> <libkivi.a> [-- <table> <object>...]...
set -eu

header=$1
shared=$2
archive=$3
shift 3
failed=0

# complain <what>: fails if standard input has lines, which are the offending names.
complain() {
    rows=$(cat)
    [ -n "$rows" ] || return 0
    printf '%s:\n%s\n' "$1" "$rows" >&2
    return 1
}

# defined <nm option or file>...: the names of global definitions.
defined() {
    nm -A -g --defined-only "$@" | awk '{ print $NF }' | sort -u
}

names=$(mktemp)
public=$(mktemp)
trap 'rm -f "$names" "$public"' EXIT

# The shared library: exactly the functions of the header, and the name of their version.
defined -D "$shared" | sed 's/@.*//' | grep -vx 'KIVI_[0-9]*' >"$names"
tr '\n' ' ' <"$header" | grep -o 'KIVI_API [^();]*(' | grep -o 'kivi_[a-z0-9_]*($' | tr -d '(' |
    sort -u >"$public"
comm -23 "$names" "$public" | complain "exported, but not in kivi.h" || failed=1
comm -13 "$names" "$public" | complain "in kivi.h, but not exported" || failed=1
echo "libkivi.so: $(wc -l <"$names") symbols, $(wc -l <"$public") functions in kivi.h"

# The archive: nothing that could clash with a host's own names.
defined "$archive" | grep -v '^kivi_' | complain "in libkivi.a without the prefix kivi_" || failed=1

# Kernel objects: the table and nothing else, and no call to what a kernel must not do.
forbidden='malloc|calloc|realloc|free|aligned_alloc|posix_memalign|getenv|secure_getenv'
forbidden="$forbidden|(f|s|sn|v.*)?printf|f?puts|write|abort|exit|__assert_fail"
forbidden="$forbidden|pthread_.*|omp_.*|GOMP_.*|__kmpc_.*"
while [ $# -gt 0 ]; do
    table=$2
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        defined "$1" | grep -vx "kivi_kernels_$table" |
            complain "defined in $1 besides the table of $table" || failed=1
        nm -u "$1" | awk '{ print $NF }' | grep -xE "$forbidden" |
            complain "called by the kernels in $1" || failed=1
        shift
    done
    echo "kernel table $table: checked"
done
exit $failed
