#!/usr/bin/env bash
# Train under Slurm, a task per GPU:
#   [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=…] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
# GPUS_PER_NODE=0 asks for none (gloo). PORT: of the first node, another for each job that shares it.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3 work_dir=$4
shift 4
gpus=${GPUS:-8} gpus_per_node=${GPUS_PER_NODE:-8}
per_node=$((gpus_per_node > 0 && gpus_per_node < gpus ? gpus_per_node : gpus))
resource=
[ "$gpus_per_node" -eq 0 ] || resource=--gres=gpu:$per_node
export MASTER_PORT=${PORT:-29500}
# a task that dies ends the job: the others would wait for it
# shellcheck disable=SC2086  # no word, or several
exec srun --partition="$partition" --job-name="$job_name" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" $resource --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --work-dir "$work_dir" --launcher slurm "$@"
