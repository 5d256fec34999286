#!/bin/sh
# Installs what is missing, on Debian and its relatives: deps.sh <group>...
# Groups: build, check, fuzz, format. With everything in place it does nothing and needs no root.
set -eu

missing=

# need <package> <command>...: the package, unless the command succeeds.
need() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

has() {
    command -v "$1"
}

compiles() { # <compiler>
    echo '#include <stdio.h>' | "$1" -fsyntax-only -x c -
}

check_library() {
    pkg-config --exists check
}

valgrind_works() {
    valgrind --error-exitcode=1 true
}

for group in "$@"; do
    case $group in
    build)
        need cmake has cmake
        need ninja-build has ninja
        need "gcc libc6-dev" compiles "${CC:-cc}"
        ;;
    check)
        need pkg-config has pkg-config
        need check check_library
        need g++ has "${CXX:-c++}"
        need binutils has nm
        need "valgrind libc6-dbg" valgrind_works
        if [ "$(uname -m)" = x86_64 ]; then
            need qemu-user has qemu-x86_64
        fi
        ;;
    fuzz) need clang has clang ;;
    format) need clang-format has clang-format ;;
    *)
        echo "deps.sh: no group \"$group\"" >&2
        exit 2
        ;;
    esac
done
[ -n "$missing" ] || exit 0

if ! has apt-get >/dev/null; then
    echo "Missing, by Debian's names:$missing. Install them, then try again." >&2
    exit 1
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
    if ! has sudo >/dev/null; then
        echo "Missing:$missing. Run as root: apt-get install$missing" >&2
        exit 1
    fi
    as_root=sudo
fi
echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -q
# The list of packages is meant to be split.
# shellcheck disable=SC2086
$as_root apt-get install -q -y --no-install-recommends $missing
