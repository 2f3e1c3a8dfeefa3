# A function that slurm_train.sh and slurm_test.sh source.
# shellcheck shell=bash

set -euo pipefail

# launch train|test OPTION PARTITION JOB_NAME CONFIG VALUE [arguments]: one task per GPU; OPTION is that of the VALUE
launch() {
    if [ $# -lt 6 ] || [[ $6 == -* ]]; then
        sed -n 's/^# *tools/usage: tools/p' "$0" >&2
        exit 2
    fi
    local script=$1 option=$2 partition=$3 job_name=$4 gpus=${GPUS:-8} gpus_per_node=${GPUS_PER_NODE:-8} resource=
    shift 4
    local per_node=$((gpus_per_node > 0 && gpus_per_node < gpus ? gpus_per_node : gpus))
    [ "$gpus_per_node" -eq 0 ] || resource=--gres=gpu:$per_node
    # without PORT, the tasks derive it from the number of the job
    [ -z "${PORT:-}" ] || export MASTER_PORT=$PORT
    # end the job if a task dies: the other tasks would wait for it
    # shellcheck disable=SC2086  # unquoted: may be empty or several words
    exec srun --partition="$partition" --job-name="$job_name" --ntasks="$gpus" --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" $resource --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "${PYTHON:-python}" -u "$(dirname "$0")/$script.py" "$1" ${option:+"$option"} "$2" --launcher slurm "${@:3}"
}
