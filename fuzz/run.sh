#!/bin/sh
# Runs every fuzz target for a bounded time, from its seeds and from what earlier runs found:
# run.sh <directory of the targets> <seconds each>. Fails if any of them finds something.
set -eu

seeds=$(cd "$(dirname "$0")" && pwd)/corpus
cd "$1"
seconds=$2
failed=0

for target in fuzz_*; do
    if [ ! -f "$target" ] || [ ! -x "$target" ]; then
        continue
    fi
    found=corpus-$target
    mkdir -p "$found"
    set -- "$found"
    if [ -d "$seeds/$target" ]; then
        set -- "$found" "$seeds/$target" # what is new goes to the first
    fi
    echo "== $target, $seconds s"
    if ! "./$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="$target-" "$@" >"$target.log" 2>&1; then
        failed=1
        grep -E '^SUMMARY|ERROR:|runtime error|Test unit written' "$target.log" ||
            tail -n 20 "$target.log"
    fi
    grep -E 'stat::number_of_executed_units|cov:' "$target.log" | tail -n 2
done
exit $failed
