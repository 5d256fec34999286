#!/bin/bash
# All checks of one machine: the tests as optimized, under the sanitizers, on older CPUs and under
# valgrind. Every stage runs, whatever the ones before it said; the exit status is 0 only if all passed.
#
#   check.sh [<cmake argument>...]
set -u -o pipefail
cd "$(dirname "$0")/.." || exit

jobs=${JOBS:-$(nproc)}
cmake_arguments=("$@")
summary=()
failed=0

note() { # <stage> <status> <line>
    summary+=("$(printf '%-12s %s' "$1" "$3")")
    [ "$2" -eq 0 ] || failed=1
}

attribute() { # <name> <file>: of a JUnit test suite
    sed -n "s/^[[:space:]]*$1=\"\([0-9]*\)\".*/\1/p" "$2" | head -n 1
}

# stage <preset> <launcher> [<ctest argument>...]: configures, builds and runs the tests.
stage() {
    local preset=$1 launcher=$2 tree=build/$1 report=build/$1/junit.xml started=$SECONDS
    local status checks skipped bad
    shift 2
    echo
    echo "== $preset"
    rm -f "$report"
    if ! { cmake --preset "$preset" "${cmake_arguments[@]}" >"$tree.log" &&
        cmake --build "$tree" -j "$jobs"; }; then
        tail -n 20 "$tree.log"
        note "$preset" 1 "does not build"
        return
    fi
    $launcher ctest --test-dir "$tree" --no-tests=error --output-on-failure -j "$jobs" \
        --output-junit junit.xml "$@"
    status=$?
    skipped=$(($(attribute skipped "$report") + $(attribute disabled "$report")))
    bad=$(attribute failures "$report")
    checks=$(sed -n 's/.*Checks: \([0-9]*\).*/\1/p' "$tree/Testing/Temporary/LastTest.log" |
        awk '{ n += $1 } END { print n + 0 }')
    note "$preset" $status "$(($(attribute tests "$report") - bad - skipped)) passed, \
$bad failed, $skipped skipped; $checks checks inside; $((SECONDS - started)) s"
}

# each <name> <launcher> <test>...: optimized test programs, one by one, under an emulator. For use in the
# background: what is to be said goes to build/<name>.log, its last line to build/<name>.note.
each() {
    local name=$1 launcher=$2 passed=0 bad=0 skipped=0 started=$SECONDS program
    shift 2
    for program in "$@"; do
        $launcher "build/release/tests/test_$program"
        case $? in
        0) passed=$((passed + 1)) ;;
        77) skipped=$((skipped + 1)) ;;
        *) bad=$((bad + 1)) && echo "$name: test_$program failed" ;;
        esac
    done >"build/$name.log" 2>&1
    echo "$passed passed, $bad failed, $skipped skipped; $((SECONDS - started)) s" >"build/$name.note"
    return $bad
}

# ThreadSanitizer of older compilers does not start where addresses are fully randomized.
fixed_addresses=
if setarch -R true 2>/dev/null; then
    fixed_addresses="setarch -R"
fi

mkdir -p build
stage release ""
KIVI_TEST_SHORT=1 stage asan-ubsan "" # they take five times as long
stage tsan "$fixed_addresses" -R threads
# The rest side by side, with waiting threads asleep.
export OMP_WAIT_POLICY=PASSIVE
names=() running=()
start() {
    each "$@" &
    names+=("$1")
    running+=($!)
}
if [ "$(uname -m)" = x86_64 ]; then
    # An instruction that leaked out of a kernel folder is illegal there.
    start "old x86-64" "qemu-x86_64 -cpu Nehalem" golden api backends
    start "AVX2 only" "qemu-x86_64 -cpu Haswell" golden kernels quantizers
fi
# Valgrind knows AVX2 but not AVX-512, and takes thirty times as long.
KIVI_TEST_SHORT=1 start valgrind "valgrind -q --error-exitcode=99 --leak-check=full \
    --errors-for-leak-kinds=definite,indirect" api seq truncate save
for i in "${!names[@]}"; do
    name=${names[i]}
    wait "${running[i]}"
    status=$?
    echo
    echo "== $name"
    cat "build/$name.log"
    note "$name" $status "$(cat "build/$name.note")"
done

echo
echo "== Summary"
printf '%s\n' "${summary[@]}"
build/release/tests/backends
exit $failed
