#!/usr/bin/env bash
# Train with several processes, one per GPU (CPU processes on a machine without a GPU):
#   tools/dist_train.sh CONFIG PROCESSES [options of dcnzoo train]
# Several machines: set NNODES, NODE_RANK and MASTER_ADDR on each.
# MAX_RESTARTS=3: restart all processes up to 3 times if one dies; with --resume, from the last checkpoint.
. "$(dirname "$0")/dist.sh"
launch train 2 "$@"
