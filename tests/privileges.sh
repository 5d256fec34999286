#!/bin/sh
# A program with more rights than its user does not open what KIVI_MODULE_PATH names:
#
#   privileges.sh <program that tells why there is no CUDA> <work directory>
set -eu

program=$1
work=$2
group=65534 # that of nobody
rm -rf "$work"
mkdir -p "$work"

skip() { # <why>
    echo "skipped: $1"
    exit 77
}

[ "$(id -u)" = 0 ] || skip "only root can give a program the rights of another group"
cp "$(command -v id)" "$work/id"
cp "$program" "$work/program"
chgrp $group "$work/id" "$work/program"
chmod g+s "$work/id" "$work/program"
[ "$("$work/id" -g)" = $group ] || skip "programs get no rights here"

echo "no module" >"$work/kivi-cuda.so"
export KIVI_MODULE_PATH="$work"
"$program" >"$work/plain"
"$work/program" >"$work/privileged"
grep -q "$work/kivi-cuda.so" "$work/plain" || {
    echo "the module in KIVI_MODULE_PATH was not tried" >&2
    exit 1
}
if grep "$work/kivi-cuda.so" "$work/privileged"; then
    echo "a set-group-ID program tried it too" >&2
    exit 1
fi
