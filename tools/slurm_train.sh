#!/usr/bin/env bash
# Train under Slurm, with one task per GPU:
#   [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=…] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of dcnzoo train]
# GPUS_PER_NODE=0 requests no GPUs (gloo). PORT: on the first node; a different one for each job on that node.
. "$(dirname "$0")/slurm.sh"
launch train --work-dir "$@"
