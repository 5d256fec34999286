# shellcheck shell=sh
# For the tests of tools, which set $tool, a command of one or several words, and $work, a folder.

die() {
    echo "$1" >&2
    cat "$work/out" "$work/err" >&2
    exit 1
}

# refuse <status> <text> <argument>...: one line of error with the text, and nothing on standard output.
refuse() {
    expected=$1 text=$2
    shift 2
    status=0
    $tool "$@" >"$work/out" 2>"$work/err" || status=$?
    if [ $status -ne "$expected" ] || [ -s "$work/out" ] || [ "$(wc -l <"$work/err")" -ne 1 ] ||
        ! grep -qF -e "$text" "$work/err"; then
        die "$*: exit status $status, not $expected with: $text"
    fi
}

# fill <argument>...: standard output that takes nothing is an error, which is said in one line.
fill() {
    [ -c /dev/full ] || return 0
    status=0
    : >"$work/out"
    $tool "$@" >/dev/full 2>"$work/err" || status=$?
    [ $status -eq 1 ] || die "exit status $status, not 1, with a full device: $*"
    grep -q "standard output cannot be written" "$work/err" || die "a full device: $*"
}
