#!/usr/bin/env bash
# Evaluate with several processes, one per GPU (CPU processes on a machine without a GPU):
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of dcnzoo test]
# Several machines: set NNODES, NODE_RANK and MASTER_ADDR on each.
set -euo pipefail
if ! [[ ${3-} =~ ^([0-9]+|auto|cpu|gpu)$ ]]; then
    echo "usage: $0 CONFIG CHECKPOINT PROCESSES [options of dcnzoo test]" >&2
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
tools=$(dirname "$0")
. "$tools/dist.sh"
launch "$processes" "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
