#!/bin/bash
# Instructions per token and kv head of the attention kernels, keys and values together, at dimension
# 128 and groups of 32: a table in Markdown. NEON's are counted in the log of an emulator, those of
# this x86 machine by stepping through them. Counted is all that the kernels execute, with folding and
# rounding. Needs the builds of `make build` and `make check-cross`.
#
#   instructions.sh [<table>...]
#   instructions.sh --mix <table>     what the instructions are, for one table of NEON
set -eu -o pipefail
cd "$(dirname "$0")/.."

tokens=512 # TOKENS of instructions.c
arm=${ARM_BUILD:-build/aarch64-linux-gnu}
host=${HOST_BUILD:-build/release}
[ $# -gt 0 ] || set -- avx2 avx512 avx512-vnni neon neon-dotprod neon-i8mm

# compile <compiler> <build> <more flags>...
compile() {
    "$1" "${@:3}" -std=gnu11 -O2 -DKIVI_STATIC -Isrc -Iinclude -I"$2/include" bench/instructions.c \
        "$2/libkivi.a" -fopenmp -lm -ldl -o "$2/instructions" 2>&1 |
        { grep -v 'Using .dlopen. in statically linked' || true; }
}

emulator=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)

# log <arguments of the program>: one instruction to a translation block, and every block logged.
log() {
    "$emulator" -cpu max -singlestep -d exec,nochain -D /dev/stdout "$arm/instructions" "$@"
}

# executed <table> <operation> <bits> <heads> <times>: everything since the program began.
executed() {
    case $1 in
    neon*) log "$@" | grep -c '^Trace' ;;
    *) "$host/instructions" --step "$@" ;;
    esac
}

# per_token <table> <bits> <heads>
per_token() {
    local operation once twice sum=0
    for operation in keys values; do
        once=$(executed "$1" $operation "$2" "$3" 1)
        twice=$(executed "$1" $operation "$2" "$3" 2)
        sum=$((sum + twice - once))
    done
    echo $((sum / tokens))
}

# mix <table> <bits> <heads>: a row of instructions per token by kind.
mix() {
    {
        aarch64-linux-gnu-objdump -d --no-show-raw-insn "$arm/instructions"
        for times in 1 2; do
            for operation in keys values; do
                echo "times $times"
                log "$1" $operation "$2" "$3" $times
            done
        done
    } | awk -v tokens=$tokens -v title="| $3 | $2 bits |" '
        function kind(op, operands) {
            if (op ~ /^ld/) return "load"
            if (op ~ /^st/) return "store"
            if (op ~ /^prfm/) return "prefetch"
            if (operands !~ /^[vqds][0-9]/) return "scalar"
            if (op ~ /^(us|s|u)dot/) return "dot"
            if (op ~ /^[su](mull|mlal)/) return "long"
            if (op ~ /^(ushr|sshr|shl|ushll|sshll|xtn|shrn|rshrn|raddhn|[su]addlp)/) return "shift"
            return "vector"
        }
        /^ *[0-9a-f]+:\t/ { sub(":", "", $1); of[$1] = kind($2, $3) }
        $1 == "times" { sign = $2 == 2 ? 1 : -1 }
        /^Trace/ { split($0, part, "/"); sub("^0*", "", part[2]); n[of[part[2]]] += sign }
        END {
            printf "%s", title
            split("dot long shift vector load store prefetch scalar", names, " ")
            for (i = 1; i <= 8; i++) printf " %.1f |", n[names[i]] / tokens
            print ""
        }'
}

[ ! -e "$arm/libkivi.a" ] || compile aarch64-linux-gnu-gcc "$arm" -static
[ ! -e "$host/libkivi.a" ] || compile "${CC:-cc}" "$host"
if [ "${1:-}" = --mix ]; then
    echo "| query heads | | dot products | long multiplications | shifts, narrowing | other vector | loads \
| stores | prefetches | scalar |"
    echo "|---|---|---|---|---|---|---|---|---|---|"
    for heads in 1 4; do
        for bits in 2 4 8; do
            mix "$2" $bits $heads
        done
    done
    exit
fi
echo "| query heads to a kv head | table | 2 bits | 4 bits | 8 bits |"
echo "|---|---|---|---|---|"
for heads in 1 4; do
    declare -A base=()
    for table in "$@"; do
        cells=
        for bits in 2 4 8; do
            n=$(per_token "$table" $bits $heads) || { echo "$table cannot be counted" >&2 && exit 1; }
            : "${base[$bits]:=$n}"
            cells+=" $n ($(awk "BEGIN { printf \"%.2f\", $n / ${base[$bits]} }")) |"
        done
        echo "| $heads | \`$table\` |$cells"
    done
    unset base
done
