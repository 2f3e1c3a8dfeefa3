# A function that dist_train.sh and dist_test.sh source.
# shellcheck shell=bash

set -euo pipefail

# launch train|test N [arguments]: by torchrun, as a part of a job on NNODES machines; the N-th argument is PROCESSES
launch() {
    local script=$1 place=$2 nodes=${NNODES:-1} rank=${NODE_RANK:-} port=${PORT:-29500} restarts=${MAX_RESTARTS:-0}
    local address=${MASTER_ADDR:-127.0.0.1} word previous='' own=''
    shift 2
    local name=${1-} processes=${!place-}
    if ! [[ $processes =~ ^([0-9]+|auto|cpu|gpu)$ ]]; then
        sed -n 's/^# *tools/usage: tools/p' "$0" >&2
        exit 2
    fi
    set -- "${@:1:place-1}" --launcher pytorch "${@:place+1}"
    # this machine serves the others
    if [ "${rank:-$((nodes - 1))}" -eq 0 ] && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        echo "error: port: expected a free one, got $port, which is in use on $(hostname); PORT=… selects another one" >&2
        exit 1
    fi
    local rendezvous=(--node_rank="${rank:-0}" --master_addr="$address" --master_port="$port")
    if [ "$restarts" -gt 0 ]; then
        # otherwise, restarted processes read the addresses of the previous ones (pytorch/pytorch#135712)
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
        for word in "$@"; do
            [ "$previous" != --work-dir ] || name=$word
            [[ $word != --work-dir=* ]] || name=${word#*=}
            previous=$word
        done
        # the id is that of the job: others with this port do not join it
        rendezvous=(--rdzv_backend=c10d --rdzv_endpoint="$address:$port" --max_restarts="$restarts"
            --rdzv_id="dcnzoo-${SLURM_JOB_ID:-}-$(basename "$name")")
        [ -z "$rank" ] || rendezvous+=(--rdzv_conf="is_host=$((rank == 0))")
        # not the name of this machine, which others may not know
        [ "$nodes" = 1 ] || own=$("${PYTHON:-python}" -m dcnzoo.openmmlab.runs.network "$address")
        [ -z "$own" ] || rendezvous+=(--local_addr="$own")
    fi
    exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="$nodes" --nproc_per_node="$processes" \
        "${rendezvous[@]}" "$(dirname "$0")/$script.py" "$@"
}
