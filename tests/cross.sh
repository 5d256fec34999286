#!/bin/bash
# The tests on other architectures, under user-mode emulators. Every stage runs, whatever the ones
# before it said; the exit status is 0 only if all passed.
#
#   cross.sh short|long [<cmake argument>...]
#
# short: AArch64, all tests with fewer rounds, then some with CPUs that lack one extension after the other, so
# that an instruction that leaked out of its kernel table is illegal. long: all tests there, and the scalar table on 32-bit Arm, RISC-V
# and IBM Z, which is big-endian.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit

jobs=${JOBS:-$(nproc)}
tier=$1
shift
cmake_arguments=("$@")
summary=()
failed=0

# build <triplet>: the release preset.
build() {
    local tree=build/$1
    mkdir -p "$tree"
    if ! { cmake --preset release -B "$tree" --toolchain "$PWD/cmake/$1.cmake" \
        -DKIVI_SYSROOT="$PWD/build/sysroot/$1" "${cmake_arguments[@]}" >"$tree/configure.log" &&
        cmake --build "$tree" -j "$jobs" >"$tree/build.log"; }; then
        tail -n 20 "$tree/configure.log" "$tree/build.log"
        summary+=("$1: does not build")
        failed=1
        return 1
    fi
}

emulator() { # <triplet>: the command that CMake found
    echo "$(sed -n 's/^KIVI_EMULATOR:[A-Z]*=//p' "build/$1/CMakeCache.txt") -L /usr/$1"
}

# report <triplet> <CPU model> <lines...>: also says which kernel tables ran.
report() {
    local where="$1${2:+ on $2}" tables
    tables=$($(emulator "$1") "build/$1/tests/backends" |
        sed -n 's/^ *\([a-z0-9-]*\)  *tested.*/\1/p' | tr '\n' ' ')
    [ -n "$tables" ] || failed=1
    shift 2
    summary+=("$(printf '%s\n    tables: %s\n' "$where" "${tables:-the programs do not start}")"
        "$(printf '    %s\n' "$@")")
}

# The number of checks inside the tests of a log.
checks_in() {
    sed -n 's/.*Checks: \([0-9]*\).*/\1/p' "$1" | awk '{ n += $1 } END { print n + 0 }'
}

# suite <triplet> <CPU model, or ""> [<ctest argument>...]
suite() {
    local triplet=$1 cpu=$2 tree=build/$1 started=$SECONDS
    shift 2
    export QEMU_CPU=$cpu
    [ -n "$cpu" ] || unset QEMU_CPU
    echo
    echo "== $triplet${cpu:+ on $cpu}"
    ctest --test-dir "$tree" --no-tests=error --output-on-failure -j "$jobs" "$@" |
        tee "$tree/ctest.log" || failed=1
    report "$triplet" "$cpu" "$(grep 'tests passed' "$tree/ctest.log"); \
$(checks_in "$tree/Testing/Temporary/LastTest.log") checks inside; $((SECONDS - started)) s"
}

# programs <triplet> <CPU model> <test>...: some of the tests, one after the other. For use in the
# background: the output goes to a log.
programs() {
    local command status=0 name
    export QEMU_CPU=$2
    command=$(emulator "$1")
    for name in "${@:3}"; do
        $command "build/$1/tests/test_$name" || { echo "test_$name failed" && status=1; }
    done >"build/$1/$2.log" 2>&1
    return $status
}

arm=aarch64-linux-gnu
case $tier in
short)
    # An emulator is slow: fewer rounds of what is random. A leaked instruction needs every kernel and every
    # path to them, and no more.
    export KIVI_TEST_SHORT=1
    cmake/sysroot.sh $arm && build $arm || exit
    suite $arm max
    tests=(kernels quantizers golden api backends seq)
    running=()
    started=$SECONDS
    for cpu in cortex-a76 cortex-a53; do
        programs $arm $cpu "${tests[@]}" &
        running+=($!)
    done
    for cpu in cortex-a76 cortex-a53; do
        echo
        echo "== $arm on $cpu"
        result="passed: ${tests[*]}"
        wait "${running[0]}" || { failed=1 && result="failed: see above"; }
        running=("${running[@]:1}")
        cat build/$arm/$cpu.log
        QEMU_CPU=$cpu report $arm $cpu "$result; $(checks_in build/$arm/$cpu.log) checks inside; \
$((SECONDS - started)) s"
    done
    ;;
long)
    cmake/sysroot.sh $arm && build $arm &&
        for cpu in max a64fx neoverse-n1 cortex-a53; do
            suite $arm $cpu
        done
    for triplet in arm-linux-gnueabihf riscv64-linux-gnu s390x-linux-gnu; do
        cmake/sysroot.sh $triplet && build $triplet && suite $triplet "" || failed=1
    done
    ;;
*)
    echo "cross.sh: no tier \"$tier\"" >&2
    exit 2
    ;;
esac

echo
echo "== Summary"
printf '%s\n' "${summary[@]}"
exit $failed
