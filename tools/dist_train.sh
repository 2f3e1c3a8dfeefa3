#!/usr/bin/env bash
# Train with several processes, one per GPU (CPU processes on a machine without a GPU):
#   tools/dist_train.sh CONFIG PROCESSES [options of dcnzoo train]
# Several machines: set NNODES, NODE_RANK and MASTER_ADDR on each.
# MAX_RESTARTS=3: restart all processes up to 3 times if one dies; with --resume, from the last checkpoint.
set -euo pipefail
if ! [[ ${2-} =~ ^([0-9]+|auto|cpu|gpu)$ ]]; then
    echo "usage: $0 CONFIG PROCESSES [options of dcnzoo train]" >&2
    exit 2
fi
config=$1 processes=$2
shift 2
address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500} restarts=${MAX_RESTARTS:-0}
rendezvous=(--node_rank="${NODE_RANK:-0}" --master_addr="$address" --master_port="$port")
if [ "$restarts" -gt 0 ]; then
    # otherwise, restarted processes read the addresses of the previous ones (pytorch/pytorch#135712)
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    rendezvous=(--rdzv_backend=c10d --rdzv_endpoint="$address:$port" --rdzv_id=dcnzoo --max_restarts="$restarts")
fi
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --nproc_per_node="$processes" "${rendezvous[@]}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
