#!/bin/sh
# What kivi-bench refuses before it measures anything: bench.sh <work directory> <command>...
# The command has several words where an emulator runs the program.
set -eu

work=$1
shift
tool=$*
rm -rf "$work"
mkdir -p "$work"
. "$(dirname "$0")/support/refuse.sh"

refuse 2 "no command" measure
refuse 2 "a multiple of 8 from 8 to 512, not \"12\"" decode --dim 12
refuse 2 "a multiple of 8 from 8 to 512, not \"12\"" decode --v-dim=12
refuse 2 "up to 16 numbers from 16 to 67108864" decode --context=64,x
refuse 2 "a number from 1 to 16, not \"17\"" decode --queries 17
refuse 2 "2, 4, 8, 16 or kXvY" append --bits k2v3
refuse 2 "32, 64 or 128, not \"33\"" save --group 33
refuse 2 "standard, precise or both" prefill --precision=exact
refuse 2 "gauss or outlier" all --data ones
refuse 2 "seconds above 0" bandwidth --time 0
refuse 2 "needs a value" decode --context
refuse 2 "takes no value" decode --in-cache=1
refuse 2 "do not divide" decode --kv-heads 3
refuse 2 "it has scalar" decode --backend none
refuse 2 "--batch means nothing" decode --backend scalar --batch 3
refuse 2 "--plot needs two contexts" decode --plot "$work/plot.svg" --context 64,64
refuse 2 "--plot needs two contexts" decode --plot "$work/plot.svg" --in-cache
refuse 2 "--plot needs two contexts" all --plot "$work/plot.svg" --backend scalar
refuse 1 "cannot be written" decode --plot "$work/none/plot.svg" --backend scalar
if [ -e "$work/plot.svg" ]; then
    die "a plot that was refused has a file"
fi
