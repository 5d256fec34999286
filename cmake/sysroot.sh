#!/bin/sh
# Check for another architecture, in build/sysroot/<triplet>, where the tests of a cross-build find
# it: sysroot.sh <triplet>... Built from the distribution's source package, because not every
# architecture that has a compiler here has packages too. apt works on a state and a list of its own,
# so the system's packages and settings stay as they are, and no root is needed.
set -eu
cd "$(dirname "$0")/.."

log=$PWD/build/sysroot/log
source=$PWD/build/sysroot/check

# The system's own sources, as those of source packages.
fetch_source() {
    apt=$PWD/build/sysroot/apt
    rm -rf "$apt" "$source"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts" "$source"
    : >"$apt/status"
    for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ ! -e "$list" ] || sed -n 's/^deb /deb-src /p' "$list" >"$apt/parts/$(basename "$list" .list).list"
    done
    for list in /etc/apt/sources.list.d/*.sources; do
        [ ! -e "$list" ] || sed 's/^Types:.*/Types: deb-src/' "$list" >"$apt/parts/$(basename "$list")"
    done
    for step in update "source --download-only check"; do
        # The step is meant to be split.
        # shellcheck disable=SC2086
        (cd "$source" && apt-get -q -o Dir::State="$apt" -o Dir::State::lists="$apt/lists" \
            -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" \
            -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/parts" \
            -o APT::Sandbox::User="$(id -un)" $step) || return
    done
    tar -C "$source" --strip-components=1 -xf "$source"/check_*.orig.tar.* && rm -rf "$apt"
}

build() { # <triplet> <folder>
    cmake -S "$source" -B "$2/build" --toolchain "$PWD/cmake/$1.cmake" \
        -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/usr -DCMAKE_INSTALL_LIBDIR="lib/$1" \
        -DBUILD_TESTING=OFF -DCHECK_ENABLE_TESTS=OFF &&
        cmake --build "$2/build" -j "${JOBS:-2}" &&
        DESTDIR=$2 cmake --install "$2/build" &&
        # Programs take the archive: the emulator looks for libraries elsewhere.
        find "$2/usr" -name '*.so*' -delete
}

if ! command -v apt-get >/dev/null && [ ! -e "$source/CMakeLists.txt" ]; then
    echo "sysroot.sh: no apt-get. Unpack the source of Check in $source, then try again" >&2
    exit 1
fi
mkdir -p build/sysroot
for triplet in "$@"; do
    folder=$PWD/build/sysroot/$triplet
    [ ! -e "$folder/complete" ] || continue
    echo "Building Check for $triplet in build/sysroot/$triplet"
    if ! { { [ -e "$source/CMakeLists.txt" ] || fetch_source; } && build "$triplet" "$folder"; } \
        >"$log" 2>&1; then
        cat "$log"
        exit 1
    fi
    touch "$folder/complete"
done
