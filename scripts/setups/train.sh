# Sourced by scripts that train: finds out which nodes take part, and starts the processes here.
#
#   source "$(dirname "${BASH_SOURCE[0]}")/../setups/train.sh"
#   launch main_lpd.py --model lpd_l ...
#
# `launch` is torchrun, to be called on every node alike. Its settings come from Slurm where the
# script runs as a step of a job, one task a node (scripts/cli/run.py does so); elsewhere there is one
# node. All of them may be set by hand:
#   NNODES, NODE_RANK           how many nodes take part, and which of them this is, from 0
#   MASTER_ADDR, MASTER_PORT    where the processes meet: on node 0
#   NPROC_PER_NODE              processes on a node; one per GPU, or one without GPUs
# OUTPUT_DIR, for the script's use, is where scripts/cli/run.py wants the output; elsewhere, if it is not
# set, output/<name of the script>.

# Slurm signals every process of a job. The script must stay until training has saved and ended; a
# handler, unlike ignoring, is not handed down to the programs it starts.
[ -z "${SLURM_STEP_NODELIST:-}" ] || trap : TERM USR1

source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

OUTPUT_DIR=${OUTPUT_DIR:-output/$(basename "$0" .sh)}

fail() {
    echo "error: train.sh: $1" >&2
    exit 2
}

# The address of a node: its name may be one that only Slurm knows.
node_address() {
    if getent hosts "$1" >/dev/null; then
        echo "$1"
    else
        scontrol show node "$1" -o | grep -o ' NodeAddr=[^ ]*' | cut -d = -f 2
    fi
}

if [ -n "${SLURM_STEP_NODELIST:-}" ]; then
    [ "$SLURM_STEP_NUM_TASKS" -eq "$SLURM_STEP_NUM_NODES" ] ||
        fail "found $SLURM_STEP_NUM_TASKS tasks on $SLURM_STEP_NUM_NODES nodes, expected one task a node (srun --ntasks-per-node=1)"
    NNODES=${NNODES:-$SLURM_STEP_NUM_NODES}
    NODE_RANK=${NODE_RANK:-$SLURM_NODEID}
    if [ "$NNODES" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
        read -r first < <(scontrol show hostnames "$SLURM_STEP_NODELIST")
        MASTER_ADDR=$(node_address "$first") && [ -n "$MASTER_ADDR" ] ||
            fail "found no address of node $first, expected one in DNS or in Slurm"
    fi
    # Jobs that share a node must not meet; below the ports that systems give out by themselves.
    MASTER_PORT=${MASTER_PORT:-$((12000 + (SLURM_JOB_ID * 16 + SLURM_STEP_ID) % 20000))}
elif [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] && [ -z "${NNODES:-}" ]; then
    fail "found one process for a job of $SLURM_JOB_NUM_NODES nodes, expected one on each (start it with srun)"
fi
NNODES=${NNODES:-1}
[ "$NNODES" -gt 1 ] || NODE_RANK=0
for name in NODE_RANK MASTER_ADDR MASTER_PORT; do
    [ "$NNODES" -eq 1 ] || [ -n "${!name:-}" ] ||
        fail "$name is not set, expected it with NNODES=$NNODES"
done

if [ -z "${NPROC_PER_NODE:-}" ]; then
    NPROC_PER_NODE=$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi

# torchrun passes on only the signals that it is told of, and kills what it has asked to end after half
# a minute. A large model's checkpoint may need longer (torch 2.11 cannot be told so).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-50}

launch() {
    local meeting=(--standalone)
    if [ "$NNODES" -gt 1 ]; then
        meeting=(--nnodes "$NNODES" --node_rank "$NODE_RANK"
            --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
    fi
    "$PYTHON" -m torch.distributed.run "${meeting[@]}" --nproc_per_node "$NPROC_PER_NODE" \
        --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 "$@"
}
