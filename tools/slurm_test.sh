#!/usr/bin/env bash
# Evaluate under Slurm, with one task per GPU:
#   [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=…] \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of dcnzoo test]
# GPUS_PER_NODE=0 requests no GPUs (gloo). PORT: on the first node; a different one for each job on that node.
. "$(dirname "$0")/slurm.sh"
launch test "" "$@"
