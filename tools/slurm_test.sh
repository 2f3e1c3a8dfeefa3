#!/usr/bin/env bash
# Evaluate under Slurm, with one task per GPU:
#   [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=…] \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of dcnzoo test]
# GPUS_PER_NODE=0 requests no GPUs (gloo). PORT: on the first node; a different one for each job on that node.
set -euo pipefail
if [ $# -lt 4 ] || [[ $4 == -* ]]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of dcnzoo test]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3 checkpoint=$4
shift 4
tools=$(dirname "$0")
. "$tools/slurm.sh"
launch "$partition" "$job_name" "$tools/test.py" "$config" "$checkpoint" --launcher slurm "$@"
