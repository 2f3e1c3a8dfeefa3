#!/usr/bin/env bash
# Evaluate with several processes, one per GPU (CPU processes on a machine without a GPU):
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of dcnzoo test]
# Several machines: set NNODES, NODE_RANK and MASTER_ADDR on each.
. "$(dirname "$0")/dist.sh"
launch test 3 "$@"
