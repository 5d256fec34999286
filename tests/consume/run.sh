#!/bin/sh
# Installs a build, moves the installation elsewhere, and builds separate C and C++ projects against
# it: through pkg-config and through find_package, shared and static, and without the archive.
#
#   run.sh <build directory> <working directory> <C compiler> <C++ compiler, may be empty>
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$1
work=$2
cc=$3
cxx=$4
prefix=$work/moved

rm -rf "$work"
mkdir -p "$work"
cmake --install "$build" --prefix "$work/installed" >"$work/install.log"
mv "$work/installed" "$prefix"

package=$(find "$prefix" -name kivi.pc)
PKG_CONFIG_PATH=$(dirname "$package")
PKG_CONFIG_LIBDIR=$PKG_CONFIG_PATH
libdir=$(dirname "$PKG_CONFIG_PATH")
export PKG_CONFIG_PATH PKG_CONFIG_LIBDIR
if grep -rlF "$work/installed" "$PKG_CONFIG_PATH" "$libdir/cmake"; then
    echo "the installation names the place that it was first installed to" >&2
    exit 1
fi

n=0

# run <what> <program> <shared|static>
run() {
    if [ "$3" = shared ]; then
        LD_LIBRARY_PATH=$libdir "$2"
    elif ldd "$2" 2>/dev/null | grep -q libkivi; then
        echo "$1: the static program needs the shared library" >&2
        exit 1
    else
        "$2"
    fi >"$work/output" || { echo "$1: failed" >&2; exit 1; }
    echo "$1, $3: $(cat "$work/output")"
    n=$((n + 1))
}

# The words that pkg-config prints are meant to be split.
# shellcheck disable=SC2046,SC2086
with_pkg_config() { # <language> <compiler> <flags> <source>
    program=$work/$1-pkg-config
    $2 $3 $(pkg-config --cflags kivi) "$4" -o "$program" $(pkg-config --libs kivi)
    run "$1, pkg-config" "$program" shared
    $2 $3 -DKIVI_STATIC $(pkg-config --cflags kivi) "$4" -o "$program-static" \
        $(pkg-config --static --libs kivi | sed 's/-lkivi\b/-l:libkivi.a/')
    run "$1, pkg-config" "$program-static" static
}

with_cmake() { # <language> <project> <compiler variable> <compiler> <shared|static>...
    what="$1, find_package" project=$2 compiler=-DCMAKE_$3_COMPILER=$4
    shift 4
    for kind in "$@"; do
        target=kivi::kivi
        [ "$kind" = shared ] || target=kivi::static
        tree=$work/$project-$kind
        rm -rf "$tree"
        {
            cmake -S "$here/$project" -B "$tree" "$compiler" -DCMAKE_BUILD_TYPE=Release \
                "-DCMAKE_PREFIX_PATH=$prefix" "-DKIVI_TARGET=$target"
            cmake --build "$tree"
        } >"$tree.log" 2>&1 || { cat "$tree.log" >&2; exit 1; }
        run "$what" "$tree/consume" "$kind"
    done
}

strict="-Wall -Wextra -Wshadow -Wstrict-prototypes -pedantic -Werror"
with_pkg_config C "$cc" "-std=c11 $strict" "$here/c/main.c"
with_cmake C c C "$cc" shared static
if [ -n "$cxx" ]; then
    for standard in 11 17; do
        with_pkg_config "C++$standard" "$cxx" \
            "-std=c++$standard -Wall -Wextra -pedantic -Werror" "$here/cpp/main.cpp"
    done
    with_cmake C++ cpp CXX "$cxx" shared static
else
    echo "C++: skipped, no C++ compiler"
fi

# The example of the README is examples/embed.c, and it works.
awk '/^```/ { code = /^```c$/; next } code' "$root/README.md" >"$work/readme.c"
if ! diff "$root/examples/embed.c" "$work/readme.c"; then
    echo "the README's example is not examples/embed.c" >&2
    exit 1
fi
with_pkg_config "README" "$cc" "-std=c11 $strict" "$work/readme.c"

# A distribution that leaves the archive out has no kivi::static, which a component asks for.
with_component() { # <what is expected>
    tree=$work/component-$1
    found=
    if cmake -S "$here/c" -B "$tree" "-DCMAKE_C_COMPILER=$cc" "-DCMAKE_PREFIX_PATH=$prefix" \
        -DKIVI_TARGET=kivi::static -DKIVI_COMPONENTS=static >"$tree.log" 2>&1; then
        found=found
    elif grep -q "kivi::static is not installed" "$tree.log"; then
        found=missing
    fi
    [ "$found" = "$1" ] || {
        cat "$tree.log" >&2
        echo "the component \"static\" is not $1" >&2
        exit 1
    }
}

with_component found
rm "$libdir"/libkivi*.a
with_cmake "C without the archive" c C "$cc" shared
with_component missing

echo "$n programs built and run against the moved installation"
