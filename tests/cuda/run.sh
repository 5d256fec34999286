#!/bin/sh
# All tests of the CUDA backend on a GPU, then compute-sanitizer over the shorter ones, then the
# tables of docs/performance-cuda.md:  tests/cuda/run.sh BUILD [SECONDS [STAGE...]]
# Stages: tests, memcheck, racecheck, bench. SECONDS limits every program.
set -u
build=${1:?"usage: tests/cuda/run.sh BUILD [SECONDS [STAGE...]]"}
seconds=${2:-600}
[ $# -gt 2 ] && shift 2 || set -- tests memcheck racecheck bench
KIVI_MODULE_PATH=$(cd "$build/src/cuda" && pwd)
export KIVI_MODULE_PATH OMP_WAIT_POLICY=passive
status=0

# run NAME COMMAND...: prints what it said if it failed, else its last lines.
run() {
    name=$1
    shift
    begin=$(date +%s)
    timeout "$seconds" "$@" >"/tmp/kivi-cuda.$$" 2>&1
    code=$?
    echo "== $name: exit $code, $(($(date +%s) - begin)) s"
    case $code in
    0) tail -n 4 "/tmp/kivi-cuda.$$" ;;
    77) cat "/tmp/kivi-cuda.$$" ;;
    *) tail -n 25 "/tmp/kivi-cuda.$$" | cut -c 1-300; status=1 ;;
    esac
    rm -f "/tmp/kivi-cuda.$$"
}

for stage; do
    case $stage in
    tests)
        for test in overlap schedule golden batch oracle parts seq forks reserve room truncate save drop busy faults \
            stress threads device devices order extremes; do
            run "$test" "$build/tests/cuda/test_cuda_$test"
        done
        # whose rows were off by 1.06 times their bound, and log-sum-exps by 1.6, when queries were one f16
        for seed in 0x1515 0x2323 0x3131 0x5555 0x6464; do
            KIVI_TEST_SEED=$seed CK_RUN_CASE=bounds run "oracle, seed $seed" "$build/tests/cuda/test_cuda_oracle"
        done ;;
    memcheck | racecheck)
        for test in golden batch; do
            run "$stage $test" compute-sanitizer --tool "$stage" --error-exitcode 9 \
                "$build/tests/cuda/test_cuda_$test"
        done
        CK_RUN_CASE=many run "$stage oracle many" compute-sanitizer --tool "$stage" \
            --error-exitcode 9 "$build/tests/cuda/test_cuda_oracle"
        for case in prompts steps; do
            CK_RUN_CASE=$case run "$stage device $case" compute-sanitizer --tool "$stage" \
                --error-exitcode 9 "$build/tests/cuda/test_cuda_device"
        done ;;
    bench)
        "$build/bench/kivi-bench" decode --backend cuda --bits 2
        "$build/bench/kivi-bench" append --backend cuda --kv-heads 8,32 --bits 2,4,8,16 ;;
    *)
        echo "unknown stage $stage"
        status=1 ;;
    esac
done
exit $status
