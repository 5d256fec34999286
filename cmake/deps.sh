#!/bin/sh
# Installs what is missing, on Debian and its relatives: deps.sh <group>...
# Groups: build, check, cross, cross-long, fuzz, format. With everything in place it does nothing and
# needs no root.
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

# The runtime of libFuzzer and of clang's sanitizers is a package of its own.
fuzzer_links() {
    echo 'int LLVMFuzzerTestOneInput(const char *p, long n) { return p && n > 1 << 30; }' |
        clang -fsanitize=fuzzer,address -x c -o /dev/null -
}

valgrind_works() {
    valgrind --error-exitcode=1 true
}

# For the tests of a cross-build: needs_cross <triplet> <Debian's name> <the emulator's name>.
needs_cross() {
    need "gcc-$1 libc6-dev-$2-cross" compiles "$1-gcc"
    need qemu-user emulates "$3"
}

emulates() {
    has "qemu-$1" || has "qemu-$1-static"
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
    fuzz)
        need clang has clang
        need libclang-rt-dev fuzzer_links
        ;;
    cross) needs_cross aarch64-linux-gnu arm64 aarch64 ;;
    cross-long)
        needs_cross arm-linux-gnueabihf armhf arm
        needs_cross riscv64-linux-gnu riscv64 riscv64
        needs_cross s390x-linux-gnu s390x s390x
        ;;
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
