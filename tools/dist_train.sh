#!/usr/bin/env bash
# Train with several processes, one per GPU (or CPU processes where there is none):
#   tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
# Several machines: set NNODES, NODE_RANK and MASTER_ADDR on each.
# MAX_RESTARTS=3: so often all processes begin anew when one has died; with --resume at the last checkpoint.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG PROCESSES [options of tools/train.py]" >&2
    exit 2
fi
config=$1 processes=$2
shift 2
address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500} restarts=${MAX_RESTARTS:-0}
rendezvous=(--node_rank="${NODE_RANK:-0}" --master_addr="$address" --master_port="$port")
if [ "$restarts" -gt 0 ]; then
    # or else new processes find the addresses of the dead ones (pytorch/pytorch#135712)
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    rendezvous=(--rdzv_backend=c10d --rdzv_endpoint="$address:$port" --rdzv_id=dcnzoo --max_restarts="$restarts")
fi
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --nproc_per_node="$processes" "${rendezvous[@]}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
