#!/usr/bin/env bash
# Evaluate under Slurm, a task per GPU:
#   [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=…] \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
# GPUS_PER_NODE=0 asks for none (gloo). PORT: of the first node, another for each job that shares it.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3 checkpoint=$4
shift 4
tools=$(dirname "$0")
. "$tools/slurm.sh"
launch "$partition" "$job_name" "$tools/test.py" "$config" "$checkpoint" --launcher slurm "$@"
