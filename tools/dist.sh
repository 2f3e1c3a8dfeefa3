# A function that dist_train.sh and dist_test.sh source.
# shellcheck shell=bash

# launch PROCESSES SCRIPT [arguments of the script]: by torchrun, as a part of a job on NNODES machines
launch() {
    local processes=$1 nodes=${NNODES:-1} rank=${NODE_RANK:-} port=${PORT:-29500} restarts=${MAX_RESTARTS:-0}
    local address=${MASTER_ADDR:-127.0.0.1} name=$3 word previous='' own=''
    shift
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
        [ "$nodes" = 1 ] || own=$("${PYTHON:-python}" -m dcnzoo.utils.network "$address")
        [ -z "$own" ] || rendezvous+=(--local_addr="$own")
    fi
    exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="$nodes" --nproc_per_node="$processes" \
        "${rendezvous[@]}" "$@"
}
