#!/usr/bin/env bash
# Train with several processes, one per GPU (CPU processes on a machine without a GPU):
#   tools/dist_train.sh CONFIG PROCESSES [options of dcnzoo train]
# Several machines: set NNODES, NODE_RANK and MASTER_ADDR on each.
# MAX_RESTARTS=3: restart all processes up to 3 times if one dies; with --resume, from the last checkpoint.
set -euo pipefail
if ! [[ ${2-} =~ ^([0-9]+|auto|cpu|gpu)$ ]]; then
    echo "usage: $0 CONFIG PROCESSES [options of dcnzoo train]" >&2
    exit 2
fi
config=$1 processes=$2
shift 2
tools=$(dirname "$0")
. "$tools/dist.sh"
launch "$processes" "$tools/train.py" "$config" --launcher pytorch "$@"
